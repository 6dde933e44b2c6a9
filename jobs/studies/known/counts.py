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

from jobs.studies.known.reconstruction import Decoder, Reconstructed
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.synthetic.dictionary.generator import NumpyDictionary, rows_of_block
from schemas.run.dictionary_corpus import Dictionary
from schemas.values import I64

BLOCK = 1 << 16
"""Rows whose pairs are counted at once."""


class Counts(NamedTuple):
    """Sums over rows: those in which both of a pair are active, int64 [P]; in which each true feature fires
    (`drawn` [F]); in which both an assigned feature and its true one do (`hits` [n]), and both any feature
    and the one nearest to it (`nearest_hits` [S]); and what x loses.
    """

    both: I64
    drawn: I64
    hits: I64
    nearest_hits: I64
    reconstructed: Reconstructed

    def __add__(self, other: Any) -> Counts:
        return Counts(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True)
class Counting:
    """Counts one shard; handed to tasks. Without a recipe all that needs what was drawn stays 0, without a
    decoder `reconstructed` is of no row.
    """

    recipe: Dictionary | None
    true_features: int
    feature: I64
    true_feature: I64
    nearest: I64
    """The true feature nearest to each of the SAE's, int64 [S]."""
    pairs: NDArray[np.int64]
    """Pairs of the SAE's features, int64 [P, 2]."""
    decoder: Decoder | None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_generator"}

    @cached_property
    def _generator(self) -> NumpyDictionary:
        assert self.recipe is not None
        return NumpyDictionary(self.recipe)

    def none(self) -> Counts:
        """The counts of no shard."""
        sizes = len(self.pairs), self.true_features, len(self.feature), len(self.nearest)
        both, drawn, hits, nearest = (np.zeros(n, np.int64) for n in sizes)
        return Counts(both, drawn, hits, nearest, Reconstructed())

    def count_shard(self, shard: ShardFiles) -> Counts:
        """The counts of a shard."""
        pattern, counts = shard.read_pattern(), self.none()
        for low in range(0, pattern.shape[0], BLOCK) if len(self.pairs) else ():
            columns = pattern[low : low + BLOCK].tocsc()  # columns are chosen, which CSR is slow at
            a, b = (columns[:, self.pairs[:, place]] for place in (0, 1))
            counts.both[:] += _both(a, b)
        if self.recipe is not None:
            for low, true in self._drawn(shard.record.row_start, shard.record.rows):
                measured = pattern[low : low + true.shape[0]]
                counts.drawn[:] += np.asarray(true.sum(axis=0, dtype=np.int64)).ravel()
                counts.hits[:] += _both(true[:, self.true_feature], measured[:, self.feature])
                counts.nearest_hits[:] += _both(true[:, self.nearest], measured)
        if self.decoder is not None:
            counts = counts._replace(reconstructed=self.decoder.sums_of_shard(shard))
        return counts

    def _drawn(self, first: int, rows: int) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """What fires in rows first .. first + rows - 1 of the corpus: int8 ones, and where they begin."""
        # the generator draws whole blocks; those at the ends may reach into other shards
        size = rows_of_block(self._generator.recipe)
        for number in range(first // size, -(-(first + rows) // size)):
            block = self._generator.block(number)
            low, high = max(first, block.first), min(first + rows, block.first + size)
            true = block.values[low - block.first : high - block.first].astype(bool).astype(np.int8)
            yield low - first, true


def _both(a: sparse.csr_matrix, b: sparse.csr_matrix) -> I64:
    """Rows in which both of a pair of columns are active, int64 [columns]."""
    rows: I64 = np.asarray(a.multiply(b).sum(axis=0, dtype=np.int64)).ravel()
    return rows
