"""Edges of bars over whole numbers: each bar counts a whole number of values, and none makes up a peak."""

from __future__ import annotations

import numpy as np

from schemas.values import F64


def whole_bars(low: int, high: int, most: int) -> F64:
    """Edges of at most `most` bars of one width that hold low .. high, halfway between whole numbers."""
    # rounded up, so that the last bar holds `high`
    width = max(1, -(-(high - low + 1) // most))
    return np.arange(low, high + width + 1, width).astype(np.float64) - 0.5


def log_bars(low: int, high: int, ratio: float) -> F64:
    """Edges, halfway between whole numbers, of bars that hold low .. high, for a log axis.

    Each starts about `ratio` times as high as the one before; where whole numbers lie further apart than
    that, each has a bar of its own. Their widths differ, on a log axis too: heights must be by width.
    """
    starts = [low]
    while starts[-1] <= high:
        starts.append(max(starts[-1] + 1, round(starts[-1] * ratio)))
    return np.array(starts) - 0.5
