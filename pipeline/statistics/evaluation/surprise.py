"""How surprising an activation is, given how often a store holds one as large.

Surprise in bits is -log2((1 + n) / (1 + N)): of N counted rows n have an activation at least as large, of the
same sign, and the row in question counts as one more, so that what was never seen has a finite
answer, log2(1 + N). (1 + n) / (1 + N) is the p-value of B. Phipson and G. Smyth, "Permutation p-values should
never be zero" (2010). A row in which the feature does not fire has 0 bits.

n comes from the feature's histogram (`histogram`: 8 bins an octave): all of the bins beyond the activation's,
and of its own the part that lies beyond it, its rows taken as evenly spread. It errs by less than that bin's
count, is 0 beyond the strongest stored activation, and at least 1 up to it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.statistics.features.histogram import bin_edges, bins_of
from schemas.values import F32, F64, I64


class Stored(NamedTuple):
    """One feature's activations in the store, as the feature table has them: B bins, ascending."""

    bins: NDArray[np.int16]
    counts: I64
    lowest: float
    highest: float


def at_least(stored: Stored, values: F32) -> F64:
    """Estimated rows with an activation at least as large as each of `values` [Q], none 0: float64 [Q]."""
    bins = bins_of(values)
    left, right = bin_edges(bins)
    # rows in lower bins, in the value's own and in higher ones; of its own the part beyond the value
    before = np.append(0, np.cumsum(stored.counts))
    first, last = (before[np.searchsorted(stored.bins, bins, side=side)] for side in ("left", "right"))
    above = before[-1] - last + (last - first) * (right - values) / (right - left)
    below = first + (last - first) * (values - left) / (right - left)
    beyond = np.where(values > 0, above, below)
    seen = np.where(values > 0, values <= stored.highest, values >= stored.lowest)
    return np.where(seen, np.maximum(beyond, 1.0), 0.0)


def surprise_bits(stored: Stored, values: F32, counted_rows: int) -> F64:
    """Bits of each of `values` [Q], none 0, where the store has so many counted rows: float64 [Q]."""
    return np.log2((1 + counted_rows) / (1 + at_least(stored, values)))
