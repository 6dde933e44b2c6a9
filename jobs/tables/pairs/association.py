"""How two features go together, from counts of rows.

Of N counted rows feature a is active in n_a, b in n_b, both in n_both >= 1; p is n / N. All is float64 and
symmetric in a and b but the last.

- jaccard: n_both / (n_a + n_b - n_both) (Jaccard 1901).
- npmi: ln(p_both / (p_a p_b)) / -ln p_both, normalised pointwise mutual information (Bouma 2009, Normalized
  (Pointwise) Mutual Information in Collocation Extraction): 1 where one never fires without the other, 0
  where they are independent. NaN where both are active in every row.
- phi: (p_both - p_a p_b) / sqrt(p_a (1 - p_a) p_b (1 - p_b)), Pearson's correlation of what is active as 0
  and 1 (Yule 1912). NaN where one of the two is active in every row.
- conditional: n_both / n_a, how often b fires where a does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.values import F64, I64

Count = Any
"""int64 [n], or one int that stands for all."""


class PairCounts(NamedTuple):
    """Of some pairs: the rows in which both are active, a is, b is; and all counted rows."""

    n_both: I64
    n_a: Count
    n_b: I64
    rows: int


def jaccard(counts: PairCounts) -> F64:
    """Jaccard's index."""
    index: F64 = counts.n_both / (counts.n_a + counts.n_b - counts.n_both)
    return index


def npmi(counts: PairCounts) -> F64:
    """Normalised pointwise mutual information."""
    p_both = counts.n_both / counts.rows
    with np.errstate(invalid="ignore"):  # 0 / 0 where both are always active
        information: F64 = np.log(
            p_both / ((counts.n_a / counts.rows) * (counts.n_b / counts.rows))
        ) / -np.log(p_both)
    return information


def phi(counts: PairCounts) -> F64:
    """Correlation."""
    p_a, p_b = counts.n_a / counts.rows, counts.n_b / counts.rows
    variances = (p_a * ((counts.rows - counts.n_a) / counts.rows)) * (
        p_b * ((counts.rows - counts.n_b) / counts.rows)
    )
    with np.errstate(invalid="ignore"):  # 0 / 0 where one is always active
        correlation: F64 = (counts.n_both / counts.rows - p_a * p_b) / np.sqrt(variances)
    return correlation


def conditional(counts: PairCounts) -> F64:
    """How often b is active where a is."""
    share: F64 = counts.n_both / counts.n_a
    return share


MEASURES: dict[str, Callable[[PairCounts], F64]] = {
    "jaccard": jaccard,
    "npmi": npmi,
    "phi": phi,
    "conditional": conditional,
}


def highest(values: F64, k: int) -> NDArray[np.intp]:
    """Places of the `k` highest values, the highest first, equal ones in order; NaN has no place."""
    places = np.flatnonzero(~np.isnan(values))
    if k < len(places):
        # all that are no less than the k-th, for equal ones are decided by their order
        least = np.partition(values[places], len(places) - k)[len(places) - k]
        places = np.flatnonzero(values >= least)
    return places[np.argsort(-values[places], kind="stable")][:k]
