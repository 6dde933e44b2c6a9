"""Sparse features drawn from a recipe: of a row's place in the lake, and its document, alone.

Shapes: N rows, Z nonzeros, F features, S slots, C cells of a slot, D documents.

The features are cut, in the order of their numbers, into S slots, and a slot's features share C cells by
their frequencies. A row has a number of active features of its own, L, and takes L of the slots, evenly
spread (systematic sampling: every slot with probability L / S); in each it draws a cell, whose feature fires.
With probability `burst` the cell is not the row's own draw but the one that its document has for that slot:
so a document has favourites, which fire in many of its rows, while a feature's frequency over the lake stays
mean(L) / S * its cells / C. Features ascend in a row and none comes twice, without sorting.

Values are k / 64 with whole k, exact in float16; so sums of them and of their squares are exact in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np

from pipeline.statistics.splitmix import GOLDEN, mixed
from pipeline.synthetic.hashing import LEVELS, hashes, skewed, stream
from pipeline.synthetic.planted import is_planted, planted_at, planted_features
from pipeline.synthetic.recipe import VERSION, Recipe
from schemas.records import digest_of
from schemas.values import F32, I32, I64, U64, Bool, SparseFeatures, TokenShard

SCALE = 64
"""Values are whole numbers divided by this."""

_ROWS, _DOCUMENTS, _RANKS, _SLOTS = range(4)
"""Streams of random numbers."""

_BLOCK = 1 << 17
"""Nonzeros drawn at once: what is computed about them stays in the caches."""

_GROUPS = 8
"""Features whose numbers differ by a multiple of this have the same distribution of values."""

_BURST_SHIFT, _BURST_MASK = np.uint64(32), np.uint64((1 << 16) - 1)
_VALUE_SHIFT = np.uint64(54)
_LEVEL_BITS = np.uint64(10)
"""Which bits of an activation's 64 decide what; the lowest choose the cell."""


class Generator:
    """Draws features. Its tables take some 100 bytes per feature."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.slots = recipe, recipe.slots
        self.planted = planted_features(recipe.d_sae, recipe.slots)
        """Numbers of the features whose maxima are planted (see `planted`)."""
        self._starts: I64 = np.arange(self.slots + 1) * recipe.d_sae // self.slots
        self._bits = max((8 * (recipe.d_sae // self.slots + 1)).bit_length(), 10)
        self._cells = self._shares()
        self._feature: I32 = np.repeat(np.arange(recipe.d_sae, dtype=np.int32), self._cells)
        self._levels: I32 = skewed(recipe.l0, recipe.l0 / 4).astype(np.int32)
        means = [16 * (1 + group) for group in range(_GROUPS)]
        self._values: F32 = np.concatenate([1 + skewed(mean - 1, 0) for mean in means]).astype(np.float32)
        self._values /= SCALE

    @cached_property
    def digest(self) -> str:
        """sha256 of the recipe and of the tables that this machine's arithmetic made of it."""
        tables = [self._cells.tolist(), self._levels.tolist(), (self._values * SCALE).tolist()]
        return digest_of({"synthetic": VERSION, **self.recipe.model_dump(), "tables": digest_of(tables)})

    def blocks(self, shard: TokenShard) -> Iterator[SparseFeatures]:
        """Features of all rows of a shard, in order, in pieces; rows that are not `stored` are empty."""
        step = max(int(_BLOCK / self.recipe.l0), 1)
        for low in range(0, shard.n_rows, step):
            some = slice(low, low + step)
            yield self.draw(shard.row_start + low, shard.document[some], shard.stored[some])

    def draw(self, row_start: int, document: U64, stored: Bool) -> SparseFeatures:
        """Features of N rows from row `row_start` of the lake on; rows of a document stand together."""
        rows = row_start + np.arange(len(stored), dtype=np.uint64)
        # one hash a row says how many features are active, and where the systematic sample of slots begins
        key = hashes(rows, stream(self.recipe.seed, _ROWS))
        level = np.where(stored, self._levels[key & np.uint64(LEVELS - 1)], np.int32(0))
        phase = ((key >> _LEVEL_BITS) & np.uint64(self.slots - 1)).astype(np.int32)
        # a planted activation takes the last slot: a row that has drawn that one already gets none more
        planted = np.flatnonzero(stored & is_planted(rows))
        last = ((level[planted] - 1) * self.slots + phase[planted]) // np.maximum(level[planted], 1)
        lengths = level.copy()
        lengths[planted] += (level[planted] == 0) | (last < self.slots - 1)
        indptr = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum(lengths, out=indptr[1:])
        # the n-th activation of a row has the slot floor((n S + phase) / L), so slots ascend in a row
        row = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
        place = np.arange(indptr[-1], dtype=np.int32) - indptr[:-1].astype(np.int32)[row]
        slot = np.minimum((place * self.slots + phase[row]) // np.maximum(level, 1)[row], self.slots - 1)
        # 64 bits for each activation, by row and place in the row: whatever block it is drawn in
        bits = mixed(key[row] + place.astype(np.uint64) * np.uint64(GOLDEN))
        indices = self._features_at(slot, bits, row, document)
        data = self._values[(indices & _GROUPS - 1) * LEVELS + (bits >> _VALUE_SHIFT).astype(np.int32)]
        # the last place of a planted row is that of the last slot, drawn or added
        ends = indptr[1:][planted] - 1
        indices[ends], data[ends] = planted_at(rows[planted], self.planted)
        return SparseFeatures(indptr, indices, data)

    def _features_at(self, slot: I32, bits: U64, row: I32, document: U64) -> I32:
        """The features int32 [Z] that fire in these slots: the rows' own draws, or their documents'."""
        # the cells of all slots lie one after another, 1 << bits of each
        own = self._feature[(slot << self._bits) + (bits & np.uint64((1 << self._bits) - 1)).astype(np.int32)]
        is_favourite = (bits >> _BURST_SHIFT & _BURST_MASK) < int(self.recipe.burst * (1 << 16))
        # each document of the block once, with a favourite in each slot, [D, S]
        first = np.append(True, document[1:] != document[:-1])[: len(document)]
        key = hashes(document[first], stream(self.recipe.seed, _DOCUMENTS))
        slots = np.arange(self.slots, dtype=np.uint64)
        drawn = hashes(key[:, None] + slots, stream(self.recipe.seed, _DOCUMENTS))
        cell = (slots << np.uint64(self._bits)) + (drawn & np.uint64((1 << self._bits) - 1))
        favourites = self._feature[cell].ravel()
        of_document = (np.cumsum(first, dtype=np.int32) - 1)[row] * self.slots + slot
        features: I32 = np.where(is_favourite, favourites[of_document], own)
        return features

    def _shares(self) -> I64:
        """Cells of each feature, int64 [F], at least one; they add up to C in every slot.

        The features of all slots are ranked together, in turns: the r-th has weight (r + S / 16) **
        -exponent, but in a slot weights are scaled to fill it. The seed decides the order of the slots and in
        them.
        """
        features = np.arange(self.recipe.d_sae, dtype=np.uint64)
        draw = hashes(features, stream(self.recipe.seed, _RANKS))
        sizes = np.diff(self._starts)
        slot = np.repeat(np.arange(self.slots), sizes)
        place = np.arange(self.recipe.d_sae) - self._starts[slot]
        # in each slot the features in a drawn order, the slots in turns in another: a rank over all
        turn = np.empty_like(place)
        turn[np.lexsort((draw, slot))] = place
        first = np.argsort(np.argsort(hashes(features[: self.slots], stream(self.recipe.seed, _SLOTS))))
        rank = turn * self.slots + first[slot]
        weight = (rank + max(self.slots / 16, 1)) ** -self.recipe.exponent
        # the weights before and with each feature, as a share of its slot's: where its cells end
        within = np.cumsum(weight) - np.repeat(np.append(0, np.cumsum(weight))[self._starts[:-1]], sizes)
        share = within / np.repeat(np.add.reduceat(weight, self._starts[:-1]), sizes)
        # a cell for each feature first, the spare ones by weight: none has no cell, and all add up to C
        spare = (1 << self._bits) - np.repeat(sizes, sizes)
        ends = np.rint(np.minimum(share, 1) * spare).astype(np.int64) + place + 1
        ends[self._starts[1:] - 1] = 1 << self._bits
        cells: I64 = np.diff(ends + (slot << self._bits), prepend=0)
        return cells
