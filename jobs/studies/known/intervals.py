"""Intervals of 95 % over rows, which a known dictionary draws independently of each other.

A real corpus has bursts, and wants documents counted (`pipeline.statistics.documents.intervals`); here both
hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.values import F64

LEVEL = 0.95
ROUNDED = {"float16": 2.0**-11, "float32": 2.0**-24}
"""The largest relative error of a stored value, by the store's activation_dtype."""


def share_interval(n: NDArray[np.int64], rows: int) -> tuple[F64, F64]:
    """Of a share of independent rows (C. J. Clopper and E. S. Pearson, 1934), float64 of n's shape."""
    from scipy import special

    tail = (1 - LEVEL) / 2
    inner = np.clip(n, 1, max(rows - 1, 1))  # the ends are set below
    low = special.betaincinv(inner, rows - inner + 1, tail)
    high = special.betaincinv(inner + 1, rows - inner, 1 - tail)
    low = np.where(n == 0, 0.0, np.where(n == rows, tail ** (1 / max(rows, 1)), low))
    high = np.where(n == rows, 1.0, np.where(n == 0, 1 - tail ** (1 / max(rows, 1)), high))
    return low, high


def mean_interval(mean: F64, variance: F64, n: NDArray[np.int64], rounded: float) -> tuple[F64, F64]:
    """Of the mean over n independent rows, of variance `variance` (ddof 0): Student's t; NaN below two rows.

    Made wider by what stored values are rounded by: where all of them are equal nothing else is uncertain.
    """
    from scipy import stats

    with np.errstate(divide="ignore", invalid="ignore"):
        error = stats.t.ppf((1 + LEVEL) / 2, np.maximum(n - 1, 1)) * np.sqrt(variance / (n - 1))
    half = np.where(n > 1, error + rounded * np.abs(mean), np.nan)
    return mean - half, mean + half
