"""Examples of each tenth of a feature's active rows, by their exact place among them.

`quantile_examples` (`examples`) takes a sample's place from the histogram, for that is all that partials
tell: some 1 sample in 50 then stands in the tenth next to its own. Here all activations are counted.
Active rows are ordered by activation, negative ones first, equal ones by row; of n rows the one at place r,
counted from 0, is of the tenth 10 (r + 1/2) / n, rounded down, so a single row is in the middle.

Shapes: F features, S samples, Z activations.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.statistics.examples.examples import INTERVALS, example_frame, smallest_hashes
from pipeline.statistics.features.ragged import element_features, elements, key_of
from pipeline.statistics.features.samples import row_hash
from schemas.values import F32, I64, U32, U64


class Tenths:
    """The samples of a merged state of `samples`; shards are shown one after another, in any order."""

    def __init__(self, state: pl.DataFrame, per_interval: int = 2) -> None:
        self._per_interval = per_interval
        self._features: I64 = state["feature"].to_numpy().astype(np.int64)
        self._feature = element_features(state, "sample_rows")
        self._rows: U64 = elements(state, "sample_rows")
        self._values: F32 = elements(state, "sample_values")
        self._keys = _keys(np.searchsorted(self._features, self._feature), self._values)
        assert (self._keys[1:] > self._keys[:-1]).all(), "a feature has one sample of a bin, in order"
        self._reached = np.zeros(len(self._keys) + 1, np.int64)
        """How many activations come before each sample, but not before the sample before it."""
        self._ties = np.zeros(len(self._keys), np.int64)
        self._n = np.zeros(len(self._features), np.int64)

    def update(self, features: U32, counts: I64, values: F32, rows: U64) -> None:
        """Count activations: `counts` [F] of each of `features` [F], `values` and lake-wide `rows` [Z]."""
        places = np.searchsorted(self._features, features.astype(np.int64))
        keys = _keys(np.repeat(places, counts), values.astype(np.float32, copy=False))
        self._n[places] += counts
        # each activation is counted at the first sample that stands after it; table() adds them up
        later = np.searchsorted(self._keys, keys, side="right")
        self._reached += np.bincount(later, minlength=len(self._reached))
        same = np.flatnonzero((later > 0) & (self._keys[later - 1] == keys))
        sample = later[same] - 1
        before = sample[rows[same] < self._rows[sample]]
        # an equal activation comes after its sample in `later`; before it comes one of a lower row
        self._ties += np.bincount(before, minlength=len(self._ties))

    def table(self) -> pl.DataFrame:
        """Of each tenth the `per_interval` samples of smallest hash, rank 0 first (schema `EXAMPLES`)."""
        place = np.searchsorted(self._features, self._feature)
        of_features_before = np.append(0, np.cumsum(self._n))[place]
        before = np.cumsum(self._reached[:-1]) - of_features_before + self._ties
        # 10 (r + 1/2) / n in whole numbers, for float64 would round at the borders
        interval = ((2 * before + 1) * INTERVALS // (2 * np.maximum(self._n[place], 1))).astype(np.uint8)
        kept, rank = smallest_hashes(
            row_hash(self._feature, self._rows), key_of(self._feature, interval), self._per_interval
        )
        columns = self._feature[kept], interval[kept], rank, self._rows[kept], self._values[kept]
        return example_frame("quantile", *columns)


def _keys(places: NDArray[np.int64], values: F32) -> I64:
    """Numbers that sort as (place, value) do, int64."""
    bits = values.view(np.int32)
    # the bits of a negative float ascend with its magnitude: flipped they ascend with its value
    ordered = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)
    return (places << 32) + ordered + (1 << 31)
