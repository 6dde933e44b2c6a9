"""In how many rows two features are both active: of a block of features against all, exactly, no n² anywhere.

Shapes: N rows of a shard, F features of the site, G those of the other site (which may be the same one).

Wherever a feature is active, the indices of that row of the other site's CSR are gathered and tallied: work
that grows with the pairs active in one row, rows x L0 x L0, and touches each pair once and in order. That is
some 3 ns a pair, of which a sparse matrix product, X_block^T X shard by shard, took 27: its products are as
wide as they are sparse. Tiles of 0 and 1 through BLAS, or bitmaps, pay only for pairs of features that both
fire in more than some 7 % of the rows; there are too few of them for two ways to the same number.

A block reads every shard, so blocks are as large as memory lets them be: a feature holds the indices gathered
so far, 4 bytes each, until they outnumber G, and from then on also a row of counts, 4 G bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pipeline.store.reading.shard_files import ShardFiles
from schemas.values import I32, I64

BLOCK_BYTES = 3 << 28
"""Of the tallies of one block of features."""
BLOCK_PAIRS = 1 << 30
"""Pairs that a block counts, some seconds' work, where there are few activations."""
PAIRS_FOR_READING = 4
"""Pairs, at least, that a block counts for each activation there is, for all of them are read for each block:
else reading would grow with the square of the shards."""
GATHERED = 1 << 19
"""Pairs gathered at once: what stays in a core's cache."""
SPARSE = 8
"""Where fewer pairs than a SPARSE-th of G were gathered, they are sorted rather than counted in a table."""

INT32_ROWS = np.iinfo(np.int32).max
"""Where a feature is active in more rows, its counts are int64."""


def mean_company(shards: Sequence[ShardFiles]) -> float:
    """How many features are active, on average over activations, in the row of one: sum L0^2 / sum L0."""
    once, twice = 0, 0
    for shard in shards:
        counts = shard.read_row_counts()
        l0, rows = (counts[name].cast(int).to_numpy() for name in ("l0", "rows"))
        once, twice = once + int((l0 * rows).sum()), twice + int((l0 * l0 * rows).sum())
    return twice / max(once, 1)


def cut(n_active: I64, company: float, width: int) -> list[range]:
    """All features in blocks; each activation makes about `company` pairs, `width` is G."""
    pairs = n_active * company
    bytes_held = 4 * np.minimum(pairs, 2 * width)
    most_pairs = max(BLOCK_PAIRS, PAIRS_FOR_READING * int(n_active.sum()))
    share = np.maximum(pairs / most_pairs, bytes_held / BLOCK_BYTES)
    # shares of a block's budget add up: a block ends where their sum passes a whole number
    number = np.cumsum(share).astype(np.int64)
    edges = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(pairs)]
    return [range(first, last) for first, last in pairwise(edges)]


class Tally:
    """How often each of G others was met."""

    def __init__(self, width: int, most: int) -> None:
        """`width` is G; no count exceeds `most`."""
        self._width, self._dtype = width, np.int32 if most <= INT32_ROWS else np.int64
        self._held: list[I32] = []
        self._size = 0
        self._counts: NDArray[Any] | None = None

    def add(self, others: I32) -> None:
        """Others that were met, each as often as it stands there."""
        self._held.append(others.copy())  # a view would keep all that was gathered with it
        self._size += len(others)
        if self._size >= self._width:
            self._fold()

    def at_least(self, support: int) -> tuple[I64, I64]:
        """The others that were met so often, ascending, and how often; int64 [n] both."""
        # sorting few indices is quicker than a table of all others, and takes less memory
        if self._counts is None and self._size * SPARSE < self._width:
            others, counts = np.unique(self._all(), return_counts=True)
            enough = counts >= support
            return others[enough].astype(np.int64), counts[enough].astype(np.int64)
        if self._held or self._counts is None:
            self._fold()
        assert self._counts is not None
        indices: I64 = np.flatnonzero(self._counts >= support)
        return indices, self._counts[indices].astype(np.int64)

    def _fold(self) -> None:
        counts = np.bincount(self._all(), minlength=self._width)
        if self._counts is None:
            self._counts = counts.astype(self._dtype)
        else:
            self._counts += counts
        self._held, self._size = [], 0

    def _all(self) -> I32:
        return np.concatenate([np.empty(0, np.int32), *self._held])


def tallies(
    pairs: Sequence[tuple[ShardFiles, ShardFiles]], n_active: I64, width: int, features: range
) -> Iterator[tuple[int, Tally]]:
    """Each feature with its tally; `pairs` are shards of the two sites that have the same rows."""
    tally_of = {feature: Tally(width, int(n_active[feature])) for feature in features}
    for a, b in pairs:
        others = b.read_pattern()
        own = a.read_pattern() if a.postings is None and a != b else others
        for place, met in gathered(a.read_pattern_of(features, own), others):
            tally_of[features[place]].add(met)
    for feature in features:
        yield feature, tally_of.pop(feature)


def gathered(block: sparse.csr_matrix, others: sparse.csr_matrix) -> Iterator[tuple[int, I32]]:
    """Place of a feature in `block` [features, N], and the indices of `others` [N, G] in rows where it is.

    A feature may come several times, with some of its rows each time.
    """
    pairs = np.cumsum(np.diff(others.indptr).astype(np.int64)[block.indices])
    total = int(pairs[-1]) if len(pairs) else 0
    # the block's entries, cut where about GATHERED pairs are reached; `pairs` counts those up to each entry
    cuts = np.searchsorted(pairs, np.arange(GATHERED, total, GATHERED), side="right")
    for first, last in pairwise(np.unique([0, *cuts, block.nnz]).tolist()):
        rows = others[block.indices[first:last]]
        # the features that have entries first .. last, the first and last of them perhaps only in part
        low = int(np.searchsorted(block.indptr, first, side="right")) - 1
        high = int(np.searchsorted(block.indptr, last, side="left"))
        ends = rows.indptr[np.clip(block.indptr[low : high + 1], first, last) - first].tolist()
        for place, (start, stop) in enumerate(pairwise(ends), low):
            if stop > start:
                yield place, rows.indices[start:stop]
