"""List columns as flat arrays: a list per feature, its elements marked by a bin and in ascending bins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from schemas.values import I64, Bool

BIN_BITS = 16
"""Bins are signed numbers of so many bits; a feature takes the bits above them."""


def key_of(features: NDArray[Any], bins: NDArray[Any]) -> I64:
    """One int64 that sorts by (feature, bin)."""
    # bins are moved to 0 .. 2^16 - 1, so that negative ones sort before positive ones
    return (features.astype(np.int64) << BIN_BITS) + (bins.astype(np.int64) + (1 << BIN_BITS - 1))


def feature_of(keys: I64) -> I64:
    """The feature in a key."""
    return keys >> BIN_BITS


def bin_of(keys: I64) -> I64:
    """The bin in a key."""
    return (keys & ((1 << BIN_BITS) - 1)) - (1 << BIN_BITS - 1)


def run_starts(keys: NDArray[np.integer[Any]]) -> I64:
    """Where each run of equal keys starts, int64."""
    first: Bool = np.ones(len(keys), np.bool_)
    first[1:] = keys[1:] != keys[:-1]
    return np.flatnonzero(first)


def runs_within(ends: NDArray[Any], most: int) -> Iterator[range]:
    """Items, in order, in runs whose sizes add up to `most` at most; a larger item is a run of its own.

    `ends` [n + 1] has 0, or where the first item begins, and then where each of the n items ends.
    """
    start = 0
    while start < len(ends) - 1:
        # the last end within the limit; one item at least, or the walk would stand still
        stop = max(int(np.searchsorted(ends, ends[start] + most, side="right")) - 1, start + 1)
        yield range(start, stop)
        start = stop


def element_features(frame: pl.DataFrame, column: str) -> I64:
    """The feature of each element of a list column, int64 [L]."""
    return np.repeat(frame["feature"].to_numpy().astype(np.int64), frame[column].list.len().to_numpy())


def elements(frame: pl.DataFrame, column: str) -> NDArray[Any]:
    """The elements of a list column that has no empty list, [L]."""
    return frame[column].explode().to_numpy()


def list_frame(keys: I64, **columns: NDArray[Any]) -> pl.DataFrame:
    """Frame of `feature` and a list column per array [L], cut where the feature of sorted `keys` changes."""
    features = feature_of(keys)
    starts = run_starts(features)
    offsets = _arrow(np.append(starts, len(keys)))
    return pl.DataFrame(
        {"feature": features[starts].astype(np.uint32)}
        | {
            name: pl.Series(pl.from_arrow(pa.LargeListArray.from_arrays(offsets, _arrow(column))))
            for name, column in columns.items()
        }
    )


def _arrow(values: NDArray[Any]) -> pa.Array:
    """The same memory as an Arrow array; `pa.array` would import pandas, half a second in every process."""
    buffers = [None, pa.py_buffer(np.ascontiguousarray(values))]
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), buffers)


_CELLS = 1 << 20
"""Cells of a table: with what is kept in them they stay in the processor's caches."""


@dataclass(frozen=True)
class Part:
    """Elements of one state that fall into a block: their place in it, and how many each feature has."""

    state: int
    slice: slice
    features: I64
    """Of the state in the block, ascending: int64 [F]."""
    lengths: I64
    """Elements of each, int64 [F]."""


@dataclass(frozen=True)
class Block:
    """A dense table of features first .. last - 1 by the bins that occur; a state has a cell but once."""

    first: int
    last: int
    bins: I64
    """Bins that occur, ascending: int64 [W]."""
    parts: Iterator[tuple[Part, I64]]
    """Parts of all states in order, each with the cells of its elements, int64 [L]."""

    @property
    def size(self) -> int:
        """Cells."""
        return (self.last - self.first) * len(self.bins)

    def keys(self, cells: I64) -> I64:
        """Keys of ascending cells, which ascend too."""
        width, features = len(self.bins), np.arange(self.first, self.last)
        starts = (features - self.first) * width
        n = np.diff(np.searchsorted(cells, starts), append=len(cells))  # 64-bit divisions take longer
        return key_of(np.repeat(features, n), self.bins[cells - np.repeat(starts, n)])


class Cells:
    """List columns of several states cut into dense tables, so that merging takes time linear in elements.

    Of each state its features, a list column, and the bin of each of the column's elements.
    """

    def __init__(self, states: Sequence[tuple[pl.Series, pl.Series, NDArray[Any]]]) -> None:
        self._features = [features.to_numpy().astype(np.int64) for features, _, _ in states]
        self._lengths = [lists.list.len().to_numpy() for _, lists, _ in states]
        self._offsets = [np.append(0, np.cumsum(lengths, dtype=np.int64)) for lengths in self._lengths]
        self._bins = [bins for _, _, bins in states]
        present = np.zeros(1 << BIN_BITS, np.bool_)
        for bins in self._bins:
            present[bins.view(np.uint16)] = True
        # bins that occur anywhere get consecutive codes: a table has no columns for the others
        occur = np.sort(np.flatnonzero(present).astype(np.uint16).view(np.int16))
        self._occur = occur.astype(np.int64)
        self._code = np.zeros(1 << BIN_BITS, np.int64)
        self._code[occur.view(np.uint16)] = np.arange(len(occur))

    def blocks(self) -> Iterator[Block]:
        """Blocks of about _CELLS cells in the order of their features, none where no feature is."""
        some = [features for features in self._features if len(features)]
        if not some:
            return
        first, end = min(f[0] for f in some), max(f[-1] for f in some) + 1
        width = max(1, _CELLS // len(self._occur))
        for low in range(int(first), int(end), width):
            high = min(low + width, int(end))
            yield Block(low, high, self._occur, self._parts(low, high))

    def _parts(self, low: int, high: int) -> Iterator[tuple[Part, I64]]:
        for state, (features, lengths, offsets, bins) in enumerate(
            zip(self._features, self._lengths, self._offsets, self._bins, strict=True)
        ):
            begin, end = np.searchsorted(features, [low, high])
            place = slice(int(offsets[begin]), int(offsets[end]))
            some, n = features[begin:end], lengths[begin:end]
            cells = np.repeat((some - low) * len(self._occur), n)
            cells += self._code[bins[place].view(np.uint16)]
            yield Part(state, place, some, n), cells
