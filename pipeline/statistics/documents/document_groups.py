"""Documents put into groups by their labels, and sums of each feature over the documents of each group.

Group 0 holds all documents. Then each label has a group for each of its values, and one for documents with
any other value; a document without a value is in no group of that label. The sums are those of `clustered`:
whole numbers but for `total`, which is added up document by document and shard by shard.

Shapes: F features, G groups, M documents of a shard, L pairs of a feature and a document in which it fires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.statistics.documents import clustered
from pipeline.statistics.documents.clustered import DocumentSums, DocumentTotals, Pairs
from pipeline.statistics.documents.trends import TREND_BYTES, NumericLabel
from schemas.tables.tables import Schema
from schemas.values import F64, I64

SUMS: Schema = {name: dtype for name, dtype in clustered.SUMS.items() if not name.startswith("total_")}
"""Without squares and products of `total`: of the mean activation no error is estimated by group."""
_WHOLE = [name for name, dtype in SUMS.items() if dtype.is_integer()]
GROUP_BYTES = 8 * len(SUMS)
"""Memory for each feature and group."""


@dataclass(frozen=True)
class Label:
    """A label column, with its values that have groups and the totals of each, then those of all others."""

    name: str
    values: tuple[str, ...]
    totals: tuple[DocumentTotals, ...]

    def groups(self, values: pl.Series) -> I64:
        """The place of each value among the groups of this label, -1 for none: int64 [M]."""
        places = {value: place for place, value in enumerate(self.values)}
        known = values.replace_strict(places, default=len(places), return_dtype=pl.Int64)
        return np.where(values.is_null().to_numpy(), -1, known.to_numpy())


@dataclass(frozen=True)
class Grouping:
    """All groups: the totals of all documents, and the labels; of those that are numbers, their spread."""

    totals: DocumentTotals
    labels: tuple[Label, ...] = ()
    numeric: tuple[NumericLabel, ...] = ()

    @property
    def bytes_per_feature(self) -> int:
        """Of the sums over documents of one feature."""
        return GROUP_BYTES * self.n_groups + TREND_BYTES * len(self.numeric)

    def numbers(self, documents: pl.DataFrame) -> list[F64]:
        """The standardised value of each document by each numeric label, NaN for none: float64 [M] each."""
        return [label.standardised(documents[label.name]) for label in self.numeric]

    @property
    def n_groups(self) -> int:
        """G."""
        return 1 + sum(len(label.totals) for label in self.labels)

    def groups(self, documents: pl.DataFrame) -> list[I64]:
        """For all documents and for each label the group of every document, -1 for none: int64 [M] each."""
        numbers, first = [np.zeros(documents.height, np.int64)], 1
        for label in self.labels:
            places = label.groups(documents[label.name])
            # a document without a value stays -1, however many groups come before
            numbers.append(np.where(places < 0, -1, places + first))
            first += len(label.totals)
        return numbers


class GroupSums:
    """Sums by feature 0 .. n_features - 1 and group."""

    def __init__(self, n_features: int, grouping: Grouping) -> None:
        self._grouping = grouping
        self._shape = (n_features, grouping.n_groups)
        self._sums: dict[str, NDArray[np.int64 | np.float64]] = {
            name: np.zeros(n_features * grouping.n_groups, np.int64 if dtype.is_integer() else np.float64)
            for name, dtype in SUMS.items()
        }

    def add(self, pairs: Pairs, groups: Sequence[I64], rows: I64) -> None:
        """Add the pairs of some features of a shard, in which documents have so many counted `rows` [M]."""
        n = rows[pairs.document]
        columns = {
            "documents": np.ones(len(n), np.int64),
            "active": pairs.active,
            "active_squared": pairs.active**2,
            "active_rows": pairs.active * n,
            "total": pairs.total,
        }
        for group_of in groups:
            group = group_of[pairs.document]
            inside = group >= 0
            # add.at adds one by one in order, so a sum does not depend on where blocks were cut
            cells = (pairs.feature * self._shape[1] + group)[inside]
            for name, column in columns.items():
                np.add.at(self._sums[name], cells, column[inside])

    def everywhere(self) -> DocumentSums:
        """Sums over all documents."""
        return self._of(0, self._grouping.totals)

    def of(self, label: Label) -> list[DocumentSums]:
        """Sums over the documents of each group of a label."""
        names = [each.name for each in self._grouping.labels]
        before = self._grouping.labels[: names.index(label.name)]
        # group 0 is of all documents; then come the groups of each label in the labels' order
        first = 1 + sum(len(each.totals) for each in before)
        return [self._of(first + place, totals) for place, totals in enumerate(label.totals)]

    def _of(self, group: int, totals: DocumentTotals) -> DocumentSums:
        columns = {name: sums.reshape(self._shape)[:, group] for name, sums in self._sums.items()}
        return DocumentSums.of(columns, totals)


def together(groups: Sequence[DocumentSums]) -> DocumentSums:
    """The sums over the documents of several groups, whole numbers alone."""
    totals = reduce(add, (group.totals for group in groups), DocumentTotals())
    return DocumentSums.of(
        {name: reduce(add, (group.columns[name] for group in groups)) for name in _WHOLE}, totals
    )


def without(whole: DocumentSums, group: DocumentSums) -> DocumentSums:
    """What is left of `together` when a group is taken away, exactly."""
    columns = {name: whole.columns[name] - group.columns[name] for name in _WHOLE}
    return DocumentSums.of(columns, whole.totals - group.totals)
