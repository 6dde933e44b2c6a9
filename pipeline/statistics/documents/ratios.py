"""Ratios of sums over documents, with errors that respect documents, from sums that merge exactly.

Document d brings totals v_d, one for each of m quantities (losses, predictions, squared errors, rows ...).
What is reported are ratios R = a.S / b.S of S = sum v_d, with weights a and b: a mean loss, an explained
variance, a recovered share. Documents are what is drawn, so

    var(R) = D / (D - 1) * sum ((a - R b).v_d)^2 / (b.S)^2

over the D documents: the ratio linearised (the delta method), as in W. G. Cochran, Sampling Techniques, 3rd
edition (1977), section 3.12; see `clustered`. The sum is (a - R b)' P (a - R b) of P = sum v_d v_d', so D, S
and P are all that is kept, and they add over shards: a document lies in one shard.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.statistics.documents.intervals import LEVEL
from schemas.values import F64


class Moments(NamedTuple):
    """D, S float64 [m] and P float64 [m, m]."""

    documents: int
    sums: F64
    products: F64

    @staticmethod
    def none(m: int) -> Moments:
        """Those of no document."""
        return Moments(0, np.zeros(m), np.zeros((m, m)))

    def plus(self, other: Moments) -> Moments:
        """Those of both sets of documents."""
        return Moments(
            self.documents + other.documents, self.sums + other.sums, self.products + other.products
        )


class Estimated(NamedTuple):
    """A value, its standard error, and the ends of its interval at LEVEL; NaN where they are not known."""

    value: float
    se: float
    low: float
    high: float


def moments(totals: F64) -> Moments:
    """Those of documents with these totals, float64 [D, m]."""
    return Moments(len(totals), totals.sum(axis=0), np.einsum("di,dj->ij", totals, totals))


def ratio(moments: Moments, above: F64, below: F64) -> Estimated:
    """above.S / below.S; its interval by Student's t with D - 1 degrees of freedom.

    All NaN where below.S is not positive: zeros that do no harm leave nothing to recover.
    """
    from scipy import stats

    nan, size, d = float("nan"), float(below @ moments.sums), moments.documents
    if not size > 0:
        return Estimated(nan, nan, nan, nan)
    value = float(above @ moments.sums) / size
    if d < 2:
        return Estimated(value, nan, nan, nan)
    # the residual of each document is (a - R b).v, so its square needs the products alone
    apart = above - value * below
    squares = max(float(apart @ moments.products @ apart), 0.0)  # rounding may not make it negative
    se = float(np.sqrt(squares * d / (d - 1))) / size
    half = se * float(stats.t.ppf((1 + LEVEL) / 2, d - 1))
    return Estimated(value, se, value - half, value + half)
