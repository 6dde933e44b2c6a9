"""Rows counted in a store of a known dictionary: pairs of features, and what fires against what was drawn.

Shapes: N rows of a shard, S features of the SAE, F true ones, P pairs, n assigned features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipeline.dictionary.generator import NumpyDictionary, rows_of_block
from pipeline.store.shard_files import ShardFiles
from schemas.dictionary_corpus import Dictionary
from schemas.values import I64

BLOCK = 1 << 16
"""Rows whose pairs are counted at once."""


class Counts(NamedTuple):
    """Sums over rows: those in which both of a pair are active, int64 [P]; of assigned features those in
    which the true one fires (`drawn`), and both it and the SAE's do (`hits`), int64 [n].
    """

    both: I64
    drawn: I64
    hits: I64

    def __add__(self, other: Any) -> Counts:
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Counting:
    """Counts one shard; handed to tasks. Without a recipe `drawn` and `hits` stay 0."""

    recipe: Dictionary | None
    feature: I64
    true_feature: I64
    pairs: NDArray[np.int64]
    """Pairs of the SAE's features, int64 [P, 2]."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_generator"}

    @cached_property
    def _generator(self) -> NumpyDictionary:
        assert self.recipe is not None
        return NumpyDictionary(self.recipe)

    def of(self, shard: ShardFiles) -> Counts:
        """The counts of a shard."""
        pattern = shard.read_pattern()
        none = np.zeros(len(self.feature), np.int64)
        drawn, hits = (none, none) if self.recipe is None else self._against_drawn(pattern, shard)
        return Counts(self._pairs_of(pattern), drawn, hits)

    def _pairs_of(self, pattern: sparse.csr_matrix) -> I64:
        both = np.zeros(len(self.pairs), np.int64)
        for low in range(0, pattern.shape[0], BLOCK) if len(both) else ():
            columns = pattern[low : low + BLOCK].tocsc()
            a, b = (columns[:, self.pairs[:, place]] for place in (0, 1))
            both += np.asarray(a.multiply(b).sum(axis=0, dtype=np.int64)).ravel()
        return both

    def _against_drawn(self, pattern: sparse.csr_matrix, shard: ShardFiles) -> tuple[I64, I64]:
        drawn, hits = (np.zeros(len(self.feature), np.int64) for _ in range(2))
        for low, true in self._drawn(shard.record.row_start, shard.record.rows):
            true = true[:, self.true_feature]
            ours = pattern[low : low + true.shape[0]][:, self.feature]
            drawn += np.asarray(true.sum(axis=0, dtype=np.int64)).ravel()
            hits += np.asarray(true.multiply(ours).sum(axis=0, dtype=np.int64)).ravel()
        return drawn, hits

    def _drawn(self, first: int, rows: int) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """What fires in rows first .. first + rows - 1 of the corpus: int8 ones, and where they begin."""
        size = rows_of_block(self._generator.recipe)
        for number in range(first // size, -(-(first + rows) // size)):
            block = self._generator.block(number)
            low, high = max(first, block.first), min(first + rows, block.first + size)
            true = block.values[low - block.first : high - block.first].astype(bool).astype(np.int8)
            yield low - first, true
