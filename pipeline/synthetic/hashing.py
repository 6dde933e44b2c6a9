"""Seeded numbers without a state: what belongs to a place (a row, a document) depends on that place alone."""

from __future__ import annotations

import numpy as np

from pipeline.statistics.splitmix import GOLDEN, mixed
from schemas.values import I64, U64

LEVELS = 1024
"""Quantiles in the tables of `skewed`."""


def stream(seed: int, number: int) -> np.uint64:
    """The key of one of a seed's streams."""
    key: np.uint64 = mixed(np.array([(seed * GOLDEN + number + 1) % (1 << 64)], dtype=np.uint64))[0]
    return key


def hashes(places: U64, key: np.uint64) -> U64:
    """64 bits of a stream for each place, uint64 of their shape."""
    return mixed(places * np.uint64(GOLDEN) + key)


def skewed(mean: float, least: float) -> I64:
    """Whole numbers int64 [LEVELS], alike probable, of this mean (to 1 / LEVELS): exponential above `least`.

    None is above 4 * mean, or below `least` rounded down.
    """
    # rounding the running sum, and not the quantiles, keeps the mean of the whole numbers
    quantile = -np.log1p(-(np.arange(LEVELS) + 0.5) / LEVELS)
    curve = np.minimum(least + (mean - least) * quantile, 3.9 * mean)
    rounded = np.rint(np.cumsum(curve * (mean / max(curve.mean(), 1e-300))))
    levels: I64 = np.diff(rounded, prepend=0).astype(np.int64)
    return levels
