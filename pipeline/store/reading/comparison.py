"""Two groups of documents, by conditions on their labels: in which features do they differ?

The sums of each group and the tests are those of `diff` and of the table `labels`
(`pipeline.statistics.documents`). Cost: one pass over the activations of the site, a shard at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from pipeline.statistics.documents.clustered import (
    DocumentSums,
    DocumentTotals,
    document_sums,
    document_totals,
)
from pipeline.statistics.documents.comparison import compare
from pipeline.store.reading.label_filters import (
    Where,
    document_condition,
    documents_that_fit,
    require_values,
)
from pipeline.tasks import OneProcess, Tasks
from schemas.errors import InputError
from schemas.records import ShardRecord
from schemas.values import Bool

if TYPE_CHECKING:
    from pipeline.store.feature_store import FeatureStore


class Compared(NamedTuple):
    """The table, and the documents, counted rows and squares of these of each group."""

    table: pl.DataFrame
    a: DocumentTotals
    b: DocumentTotals


@dataclass(frozen=True)
class _Groups:
    store: FeatureStore
    site: str
    conditions: tuple[pl.Expr, pl.Expr]

    def inside(self, record: ShardRecord) -> list[Bool]:
        """Which documents of a shard are in a, and in b: [M]. Unknown is not in."""
        return documents_that_fit(self.store, record, self.conditions)


def compare_groups(
    store: FeatureStore,
    site: str,
    where_a: Where,
    where_b: Where,
    *,
    tasks: Tasks | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Compared:
    """Compare the documents of two groups, feature by feature; the table is `schemas.tables.tables.DIFF`.

    `frequency_difference` is that in b minus that in a; its z is clustered by document. `advance` counts
    shards. InputError for a condition that is none, a group without counted rows, and a document in both.
    """
    site = store.require_features(site).name
    groups = _Groups(store, site, (document_condition(store, where_a), document_condition(store, where_b)))
    records = store.committed(site)
    _require_apart(groups, records, (where_a, where_b))
    sums = tuple(DocumentSums(store.site(site).d_sae) for _ in "ab")
    for parts in (tasks or OneProcess()).map(partial(_shard_sums, groups), records):
        for side, part in zip(sums, parts, strict=True):
            side.add(*part)
        advance(1)
    for side, where in zip(sums, (where_a, where_b), strict=True):
        if not side.totals.rows:
            raise InputError(f"{_written(where)}: the documents that fit have no row that the site counts")
    return Compared(compare(*sums), sums[0].totals, sums[1].totals)


def _written(where: Where) -> str:
    return f"--where {where!r}" if isinstance(where, str) else f"where {where}"


def _require_apart(groups: _Groups, records: list[ShardRecord], where: tuple[Where, Where]) -> None:
    """InputError where a group is empty, or a document is in both."""
    in_a = in_b = in_both = 0
    for record in records:
        a, b = groups.inside(record)
        in_a, in_b = in_a + int(a.sum()), in_b + int(b.sum())
        in_both += int((a & b).sum())
    for n, each in ((in_a, where[0]), (in_b, where[1])):
        if not n:
            if isinstance(each, str):
                require_values(groups.store, [each])
            raise InputError(f"{_written(each)}: no document fits")
    if in_both:
        raise InputError(
            f"{in_both:,} of {in_a + in_b - in_both:,} documents are in both groups: give two conditions "
            "that no document fits together"
        )


def _shard_sums(groups: _Groups, record: ShardRecord) -> list[tuple[pl.DataFrame, DocumentTotals]]:
    """The sums and totals of both groups over one shard."""
    tokens = groups.store.token_shard(groups.site, record.name, inputs=False)
    postings = groups.store.postings(groups.site, record.name)
    return [
        (document_sums(postings, tokens, mask), document_totals(tokens, mask))
        for mask in groups.inside(record)
    ]
