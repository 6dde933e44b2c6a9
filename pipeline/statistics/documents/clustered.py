"""Sums over documents, and what they say about the error of a frequency or a mean.

The rows of a document are no independent draws: a feature fires in bursts. What is drawn is documents. Of the
D documents with a counted row, let document d have n counted rows and x active rows (or x the sum of its
activations). Then p = sum x / sum n is the frequency (or `mean_all`), and

    var(p) = D / (D - 1) * sum (x - p n)^2 / (sum n)^2

is the variance of this ratio of two totals, linearised: W. G. Cochran, Sampling Techniques, 3rd edition
(1977), section 3.12, with an unlimited supply of documents; it is also the sandwich of K.-Y. Liang and
S. L. Zeger (1986) for a mean, clustered by document. Written out, it needs of each feature sum x, sum x^2 and
sum x n, and of all together D, sum n and sum n^2. These add over shards: a document lies in one shard.

Shapes: F features, L pairs of a feature and a document in which it fires, M documents of a shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.statistics import BLOCK_NNZ
from pipeline.statistics.features.ragged import run_starts
from pipeline.statistics.features.statistic import FEATURE
from schemas.tables.tables import Schema
from schemas.values import F64, I64, Bool, Postings, TokenShard

SUMS: Schema = {
    **dict.fromkeys(("documents", "active", "active_squared", "active_rows"), pl.Int64()),
    **dict.fromkeys(("total", "total_squared", "total_rows"), pl.Float64()),
}
"""`documents` in which a feature fires; over these the sums of x, x^2 and x n, where x is the number of
active rows (`active`) or the sum of activations (`total`)."""

CHANGES: Schema = {
    **dict.fromkeys(("active_changed", "active_change_squared", "total_changed"), pl.Int64()),
    "total_change_squared": pl.Float64(),
}
"""Between two sets of activations over the same documents: in how many x differs, and the sum over them of
the squared difference."""

MEASURES = ("active", "total")


@dataclass(frozen=True)
class DocumentTotals:
    """D, sum n and sum n^2 over documents with a counted row."""

    documents: int = 0
    rows: int = 0
    rows_squared: int = 0

    def __add__(self, other: DocumentTotals) -> DocumentTotals:
        return DocumentTotals(**{name: n + getattr(other, name) for name, n in vars(self).items()})

    def __sub__(self, other: DocumentTotals) -> DocumentTotals:
        return DocumentTotals(**{name: n - getattr(other, name) for name, n in vars(self).items()})


class Pairs(NamedTuple):
    """Features and documents [L], by both, with the active rows int64 and the sum of activations float64."""

    feature: I64
    document: I64
    active: I64
    total: F64


def document_rows(shard: TokenShard) -> tuple[I64, I64]:
    """Each row's document, counted from the shard's first, int64 [N]; counted rows of each, int64 [M]."""
    assert np.all(shard.document[1:] >= shard.document[:-1]), "documents of a shard are out of order"
    # diff is 0 at the first row, so documents are counted from 0 whatever their numbers are
    place = np.cumsum(np.diff(shard.document, prepend=shard.document[:1]) != 0)
    return place, np.bincount(place[shard.counted], minlength=int(place[-1]) + 1 if len(place) else 0)


def document_totals(shard: TokenShard, inside: Bool | None = None) -> DocumentTotals:
    """Those of one shard, or of its documents `inside` [M]."""
    rows = document_rows(shard)[1]
    if inside is not None:
        rows = rows[inside]
    return DocumentTotals(int(np.count_nonzero(rows)), int(rows.sum()), int((rows * rows).sum()))


def document_sums(postings: Postings, shard: TokenShard, inside: Bool | None = None) -> pl.DataFrame:
    """Sums of one shard, or of its documents `inside` [M]: a row per feature that fired there.

    Columns `feature` and SUMS.
    """
    place, rows = document_rows(shard)
    blocks = [pl.DataFrame(schema=FEATURE | SUMS)]
    for (block,) in _blocks(postings):
        pairs = document_pairs(block, place)
        if inside is not None:
            kept = inside[pairs.document]
            pairs = Pairs(pairs.feature[kept], pairs.document[kept], pairs.active[kept], pairs.total[kept])
        n = rows[pairs.document]
        columns: dict[str, NDArray[Any]] = {"documents": np.ones(len(n), np.int64)}
        for name in MEASURES:
            x = getattr(pairs, name)
            columns |= {name: x, f"{name}_squared": x * x, f"{name}_rows": x * n}
        blocks.append(_added(pairs.feature, columns, SUMS))
    return pl.concat(blocks)


def document_changes(before: Postings, after: Postings, shard: TokenShard) -> pl.DataFrame:
    """Changes over one shard: a row per feature that fired in either, columns `feature` and CHANGES."""
    place, rows = document_rows(shard)
    n_documents, blocks = len(rows), [pl.DataFrame(schema=FEATURE | CHANGES)]
    for sides in _blocks(before, after):
        a, b = (document_pairs(side, place) for side in sides)
        # a pair that both sides have is two neighbours in the order of its key, and becomes one run
        keys = np.concatenate([pairs.feature * n_documents + pairs.document for pairs in (a, b)])
        order = np.argsort(keys, kind="stable")  # merges two ascending runs
        keys = keys[order]
        either = run_starts(keys)
        columns: dict[str, NDArray[Any]] = {}
        for name in MEASURES:
            change = _runs(np.concatenate([-getattr(a, name), getattr(b, name)])[order], either)
            columns[f"{name}_changed"] = (change != 0).astype(np.int64)
            columns[f"{name}_change_squared"] = change**2
        blocks.append(_added(keys[either] // max(n_documents, 1), columns, CHANGES))
    return pl.concat(blocks)


def _runs(values: NDArray[Any], starts: I64) -> NDArray[Any]:
    """The sum of each run."""
    return np.add.reduceat(values, starts) if len(starts) else values[:0]


def _added(features: I64, columns: dict[str, NDArray[Any]], schema: Schema) -> pl.DataFrame:
    """The sum of every column over each run of one of the ascending `features`."""
    starts = run_starts(features)
    sums = {name: _runs(column, starts) for name, column in columns.items()}
    return pl.DataFrame({"feature": features[starts], **sums}, schema=FEATURE | schema)


def document_pairs(postings: Postings, place: I64) -> Pairs:
    """Activations added up by feature and document; `place` is each row's document [N]."""
    document = place[postings.rows]
    # a pair begins where the document changes, and where a feature begins: two may share a document there
    first = np.ones(len(document), np.bool_)
    first[1:] = document[1:] != document[:-1]
    first[postings.offsets[:-1]] = True
    starts = np.flatnonzero(first)
    values = postings.values.astype(np.float64)
    # how many pairs each feature has: the offsets counted in pairs, since every one is a start itself
    return Pairs(
        np.repeat(postings.features.astype(np.int64), np.diff(np.searchsorted(starts, postings.offsets))),
        document[starts],
        np.diff(starts, append=len(document)),
        _runs(values, starts),
    )


def _blocks(*sides: Postings) -> Iterator[tuple[Postings, ...]]:
    """All sides cut at the same features, into runs of whole features of about BLOCK_NNZ activations."""
    features = reduce(np.union1d, (side.features for side in sides)).astype(np.int64)
    sizes = np.zeros(len(features), np.int64)
    for side in sides:
        sizes[np.searchsorted(features, side.features)] += np.diff(side.offsets)
    # a cut where the running total passes a multiple of BLOCK_NNZ; every feature number is below 2^32
    cuts = features[run_starts(np.cumsum(sizes) // BLOCK_NNZ)]
    for low, high in zip(cuts, np.append(cuts, 1 << 32)[1:], strict=True):
        yield tuple(side.between(int(low), int(high)) for side in sides)


class DocumentSums:
    """Sums over shards of all features 0 .. d_sae - 1, added in shard order: 8 bytes a feature and column."""

    def __init__(self, d_sae: int, schema: Schema = SUMS) -> None:
        kinds = {name: np.int64 if dtype.is_integer() else np.float64 for name, dtype in schema.items()}
        self.columns: dict[str, NDArray[Any]] = {n: np.zeros(d_sae, kind) for n, kind in kinds.items()}
        self.totals = DocumentTotals()

    @classmethod
    def of(cls, columns: dict[str, NDArray[Any]], totals: DocumentTotals) -> DocumentSums:
        """Sums that were added up elsewhere: columns [F] of SUMS, not necessarily all of them."""
        sums = cls(0, {})
        sums.columns, sums.totals = columns, totals
        return sums

    def add(self, shard: pl.DataFrame, totals: DocumentTotals) -> None:
        """Add what `document_sums`, or `document_changes`, gives for the next shard."""
        features = shard["feature"].to_numpy()
        for name, column in self.columns.items():
            column[features] += shard[name].to_numpy()
        self.totals += totals

    def estimate(self, measure: str) -> Estimate:
        """What is known of p by the `active` (a frequency) or the `total` (a mean over all counted rows)."""
        x, squared, cross = (
            self.columns[name].astype(np.float64)
            for name in (measure, f"{measure}_squared", f"{measure}_rows")
        )
        return Estimate(x, squared, cross, self.totals)


class Estimate(NamedTuple):
    """p = sum x / sum n of each feature: sum x, sum x^2, sum x n, float64 [F], and D, sum n, sum n^2."""

    x: F64
    x_squared: F64
    x_rows: F64
    totals: DocumentTotals

    @property
    def p(self) -> F64:
        """The ratio: sum x / sum n; NaN over no counted row."""
        return self.x / self.totals.rows if self.totals.rows else np.full(len(self.x), np.nan)

    def squares(self, p: F64) -> F64:
        """The sum of (x - p n)^2, which rounding may not make negative."""
        squares: F64 = self.x_squared - 2 * p * self.x_rows + p**2 * self.totals.rows_squared
        return np.maximum(squares, 0)

    def variance(self) -> F64:
        """The variance of p, clustered by document; NaN below two documents."""
        d = self.totals.documents
        if d < 2:
            return np.full(len(self.x), np.nan)
        return self.squares(self.p) * (d / (d - 1) / float(self.totals.rows) ** 2)
