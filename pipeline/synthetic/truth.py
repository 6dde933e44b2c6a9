"""What the generator drew, counted in whole numbers, without the store and without `pipeline.statistics`.

Values are k / SCALE, so sums of k and of k * k are whole numbers, and moments are quotients of whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipeline.synthetic.generator import SCALE, Generator
from schemas.values import F64, I64, SparseFeatures, TokenShard


@dataclass(frozen=True)
class Truth:
    """Counts over shards; all arrays int64 [F] but `l0`, int64 [largest L0 + 1]."""

    counted_rows: int
    contexts: int
    """With a counted row."""
    documents: int
    """With a counted row."""
    n_active: I64
    sum_k: I64
    """Sum of SCALE times the value."""
    sum_k2: I64
    """Sum of its square."""
    max_k: I64
    """0 where a feature never fires."""
    active_contexts: I64
    active_documents: I64
    l0: I64
    """Counted rows by the number of their active features."""

    def moments(self, *, active: bool) -> tuple[F64, F64]:
        """Mean and variance (ddof 0) of each feature over its active rows or over all counted rows.

        Exact but for the last rounding; NaN where there is no row.
        """
        rows = self.n_active if active else np.full_like(self.n_active, self.counted_rows)
        columns = zip(rows.tolist(), self.sum_k.tolist(), self.sum_k2.tolist(), strict=True)
        nothing = (float("nan"), float("nan"))
        # the variance as a fraction of whole numbers, of which one quotient alone is rounded
        pairs = [
            (k / (n * SCALE), float(Fraction(n * k2 - k**2, (n * SCALE) ** 2))) if n else nothing
            for n, k, k2 in columns
        ]
        return np.array([mean for mean, _ in pairs]), np.array([variance for _, variance in pairs])


def truth(generator: Generator, shards: Iterable[TokenShard]) -> Truth:
    """Count what the generator draws for shards of one site, given in the order of the lake."""
    count = _Count(generator.recipe.d_sae)
    for shard in shards:
        context, low = shard.context_of_row(), 0
        for features in generator.blocks(shard):
            some = slice(low, low := low + len(features.indptr) - 1)
            count.add(features, context[some], shard.document[some].astype(np.int64), shard.counted[some])
    return count.result()


class _Count:
    """The sums so far."""

    def __init__(self, d_sae: int) -> None:
        names = ("n_active", "sum_k", "sum_k2", "max_k", "active_contexts", "active_documents")
        self._by_feature = {name: np.zeros(d_sae, np.int64) for name in names}
        self._l0 = np.zeros(1, np.int64)
        self._contexts, self._documents = _Distinct(d_sae), _Distinct(d_sae)
        self._all_contexts, self._all_documents = _Distinct(1), _Distinct(1)
        self._seen = np.zeros(2, np.int64)

    def add(self, features: SparseFeatures, context: I64, document: I64, counted: NDArray[np.bool_]) -> None:
        """Count one block of rows, `context` and `document` int64 [N] ascending."""
        d_sae = len(self._by_feature["n_active"])
        shape = (len(context), d_sae)
        columns = sparse.csr_matrix((features.data, features.indices, features.indptr), shape=shape).tocsc()
        n = np.diff(columns.indptr).astype(np.int64)
        fired = np.flatnonzero(n)
        starts = columns.indptr[fired]
        k = np.rint(columns.data.astype(np.float64) * SCALE).astype(np.int64)
        sums = self._by_feature
        sums["n_active"] += n
        if len(fired):
            sums["sum_k"][fired] += np.add.reduceat(k, starts)
            sums["sum_k2"][fired] += np.add.reduceat(k * k, starts)
            sums["max_k"][fired] = np.maximum(sums["max_k"][fired], np.maximum.reduceat(k, starts))
            sums["active_contexts"][fired] += self._contexts.new(context[columns.indices], fired, starts)
            sums["active_documents"][fired] += self._documents.new(document[columns.indices], fired, starts)
        if counted.any():
            more = np.bincount(np.diff(features.indptr)[counted], minlength=len(self._l0)).astype(np.int64)
            more[: len(self._l0)] += self._l0
            self._l0, zero = more, np.zeros(1, np.int64)
            self._seen[0] += self._all_contexts.new(context[counted], zero, zero)[0]
            self._seen[1] += self._all_documents.new(document[counted], zero, zero)[0]

    def result(self) -> Truth:
        """All that was counted."""
        contexts, documents = self._seen.tolist()
        return Truth(int(self._l0.sum()), contexts, documents, **self._by_feature, l0=self._l0)


class _Distinct:
    """Counts distinct numbers in groups, where a group's numbers never descend."""

    def __init__(self, groups: int) -> None:
        self._last: I64 = np.full(groups, -1, np.int64)

    def new(self, numbers: I64, groups: I64, starts: I64) -> I64:
        """How many of `numbers` [Z], cut at `starts` into some `groups`, their groups had not before."""
        # at a group's start the comparison is with what the group had last, in an earlier block
        changed = np.append(True, numbers[1:] != numbers[:-1])
        changed[starts] = numbers[starts] != self._last[groups]
        self._last[groups] = numbers[np.append(starts[1:], len(numbers)) - 1]
        return np.add.reduceat(changed, starts, dtype=np.int64)
