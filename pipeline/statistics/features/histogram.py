"""Histogram of active activations in bins spaced evenly in the float's bits, and quantiles from it.

A bin is the sign, the exponent and the upper 3 bits of the fraction of the float32: 8 bins in every octave,
exact to compute, the same for every shard, half-open away from zero: lower <= |activation| < upper.
Bin b >= 0 holds positive activations whose bits shifted right by 20 are b; bin -1 - b the negative ones, so
bins sort as activations do. Zeros are in none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.statistics.features.ragged import Cells, bin_of, elements, key_of, list_frame, run_starts
from pipeline.statistics.features.statistic import FEATURE, every_feature, feature_union
from schemas.tables.tables import Schema
from schemas.values import F32, F64, Postings, TokenShard, Totals

FRACTION_BITS = 3
PERCENTS = (1, 10, 25, 50, 75, 90, 99)

STATE: Schema = {
    "min_activation": pl.Float32(),
    "max_activation": pl.Float32(),
    "bins": pl.List(pl.Int16()),
    "bin_counts": pl.List(pl.Int64()),
}
TABLE: Schema = {
    "min_activation": pl.Float32(),
    "max_activation": pl.Float32(),
    **{f"q{percent:02d}_active": pl.Float64() for percent in PERCENTS},
    "histogram_bins": pl.List(pl.Int16()),
    "histogram_counts": pl.List(pl.Int64()),
}


def bins_of(values: F32, fraction_bits: int = FRACTION_BITS) -> NDArray[np.int16]:
    """The bin of each float32 value, int16; `fraction_bits` 3 is the histogram's 8 bins an octave."""
    magnitude = (np.abs(values).view(np.uint32) >> np.uint32(23 - fraction_bits)).astype(np.int16)
    return np.where(np.signbit(values), -1 - magnitude, magnitude)


def bin_edges(bins: NDArray[np.int16], fraction_bits: int = FRACTION_BITS) -> tuple[F64, F64]:
    """Left and right edge of each bin, left < right, float64; the edge nearer to zero belongs to the bin."""
    magnitude = np.where(bins < 0, -1 - bins, bins).astype(np.uint32)
    shift = np.uint32(23 - fraction_bits)
    near = (magnitude << shift).view(np.float32).astype(np.float64)
    far = ((magnitude + np.uint32(1)) << shift).view(np.float32).astype(np.float64)
    return np.where(bins < 0, -far, near), np.where(bins < 0, -near, far)


def quantiles(state: pl.DataFrame) -> dict[str, F64]:
    """Quantiles of each feature's active activations, float64 [F] by column name.

    The p-th is NumPy's `inverted_cdf`: the ceil(p n)-th smallest of n, negative ones by their sign before
    positive ones. Its bin is known exactly; the answer
    is the bin's midpoint, held between the smallest and the largest activation, hence within 1/16 of the
    true value (float32's subnormals, below 2**-126, excepted).
    """
    # one running total over all features, and what it was before each: no loop over features
    lengths = state["bins"].list.len().to_numpy().astype(np.int64)
    ends = np.cumsum(lengths)
    cumulative = np.cumsum(elements(state, "bin_counts"))
    before = np.append(0, cumulative)[ends - lengths]
    n = np.append(0, cumulative)[ends] - before
    left, right = bin_edges(elements(state, "bins"))
    low, high = state["min_activation"].to_numpy(), state["max_activation"].to_numpy()
    answer = {}
    for percent in PERCENTS:
        rank = -(n * -percent // 100)  # in integers: float64 misses it beyond 2**50
        place = np.searchsorted(cumulative, before + rank)
        answer[f"q{percent:02d}_active"] = np.clip((left[place] + right[place]) / 2, low, high)
    return answer


def reached(state: pl.DataFrame, k: int) -> F32:
    """A bound, the edge of a bin, that |activation| reaches in at least `k` active rows: float32 [F].

    The highest such bound, 0 where a feature has fewer than k active rows.
    """
    bins, counts = elements(state, "bins").astype(np.int64), elements(state, "bin_counts")
    lengths = state["bins"].list.len().to_numpy().astype(np.int64)
    feature, magnitude = np.repeat(np.arange(len(lengths)), lengths), np.where(bins < 0, -1 - bins, bins)
    if (bins < 0).any():  # else they ascend by magnitude already
        order = np.argsort((feature << 16) + magnitude, kind="stable")
        magnitude, counts = magnitude[order], counts[order]
    ends = np.cumsum(lengths)
    before = np.append(0, np.cumsum(counts))
    # rows in a bin and those above it: at least k in the first bins of a feature, fewer in the rest
    enough = np.repeat(before[ends], lengths) - before[:-1] >= k
    n_enough = np.bincount(feature[enough], minlength=len(lengths))
    highest = magnitude[np.maximum(ends - lengths + n_enough - 1, 0)] if len(bins) else magnitude
    edges = (highest.astype(np.uint32) << np.uint32(23 - FRACTION_BITS)).view(np.float32)
    return np.where(n_enough > 0, edges, np.float32(0))


class Histogram:
    """Smallest and largest active activation, sparse histogram, quantiles.

    A feature that never fires has null, and empty lists.
    """

    name = "histogram"
    state = STATE
    table = TABLE

    def partial(self, postings: Postings, shard: TokenShard) -> pl.DataFrame:  # noqa: ARG002
        """Counts equal (feature, bin) keys."""
        starts = postings.offsets[:-1]
        group = np.repeat(np.arange(len(starts)), np.diff(postings.offsets))
        keys = np.sort(key_of(postings.features[group], bins_of(postings.values)))
        # equal keys stand together once sorted: the length of a run is the count of its bin
        first = run_starts(keys)
        counts, keys = np.diff(first, append=len(keys)), keys[first]
        bins = list_frame(keys, bins=bin_of(keys).astype(np.int16), bin_counts=counts)
        return bins.with_columns(
            min_activation=np.minimum.reduceat(postings.values, starts),
            max_activation=np.maximum.reduceat(postings.values, starts),
        ).select(*FEATURE, *STATE)

    def combine(self, states: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """Adds the counts of equal bins."""
        cells = Cells([(state["feature"], state["bins"], elements(state, "bins")) for state in states])
        counts = [elements(state, "bin_counts") for state in states]
        keys, sums = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for block in cells.blocks():
            table = np.zeros(block.size, np.int64)
            for part, cell in block.parts:
                table[cell] += counts[part.state][part.slice]
            filled = np.flatnonzero(table)
            keys.append(block.keys(filled))
            sums.append(table[filled])
        key, total = np.concatenate(keys), np.concatenate(sums)
        bins = list_frame(key, bins=bin_of(key).astype(np.int16), bin_counts=total)
        features, places = feature_union(states)
        low, high = (np.full(len(features), fill, np.float32) for fill in (np.inf, -np.inf))
        for state, at in zip(states, places, strict=True):
            low[at] = np.minimum(low[at], state["min_activation"].to_numpy())
            high[at] = np.maximum(high[at], state["max_activation"].to_numpy())
        return bins.with_columns(min_activation=low, max_activation=high).select(*FEATURE, *STATE)

    def finalize(self, state: pl.DataFrame, totals: Totals, d_sae: int) -> pl.DataFrame:  # noqa: ARG002
        """The histogram, widened to all features, with its quantiles."""
        state = state.hstack(pl.DataFrame(quantiles(state))).rename(
            {"bins": "histogram_bins", "bin_counts": "histogram_counts"}
        )
        lists = pl.col("histogram_bins", "histogram_counts")
        return every_feature(state.select(*FEATURE, *TABLE), d_sae).with_columns(lists.fill_null([]))
