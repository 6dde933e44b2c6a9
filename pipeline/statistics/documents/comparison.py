"""Whether a feature fires more, or more strongly, in one set of documents than in another.

The difference of two ratios (see `clustered`) is judged by Student's t, two-sided; q is that of Y. Benjamini
and Y. Hochberg (1995) over the features that were tested.

Two sets of documents, drawn apart: the variance is the larger of two. One is the sum of the two variances,
with B. L. Welch's (1947) degrees of freedom. Where a feature is rare in the smaller set, that one comes out
far too small: a feature that never fired there would be known without error. So the other is the variance
that the difference has if both are of one population: the squares (x - p n)^2 of all documents about the
common p, shared out in proportion to sum n^2, which is how bursts spread them.

The same documents seen twice, by two models: the variance of the change a document, D - 1 degrees of freedom.

Null instead of z, p and q: features that chance alone would bring to fewer than SUPPORT documents of the
smaller set; of the same documents, those that changed in fewer than 2 SUPPORT. There the error is a guess.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

from pipeline.statistics.documents.clustered import DocumentSums, Estimate
from schemas.tables.tables import DIFF
from schemas.values import F64, Bool

SUPPORT = 5
MEASURES = {"frequency": "active", "mean_all": "total"}
"""What is compared -> the sums that it is made of."""


class Change(NamedTuple):
    """A difference with its variance, its degrees of freedom, and where it may be tested: [F]."""

    difference: F64
    variance: F64
    freedom: F64
    supported: Bool


def compare(a: DocumentSums, b: DocumentSums, changes: DocumentSums | None = None) -> pl.DataFrame:
    """The table `schemas.tables.tables.DIFF`: a row per feature.

    `changes` are those between the two over the same documents; None: the documents are others.
    """
    columns: dict[str, object] = {"feature": np.arange(len(a.columns["active"]), dtype=np.uint32)}
    for side, sums in (("a", a), ("b", b)):
        columns[f"documents_{side}"] = sums.columns["documents"]
        columns[f"n_active_{side}"] = sums.columns["active"]
    for name, measure in MEASURES.items():
        change = _independent_change(a, b, measure) if changes is None else _paired(a, b, changes, measure)
        columns |= _tested(name, a.estimate(measure).p, b.estimate(measure).p, change)
    return pl.DataFrame(columns, schema=DIFF, nan_to_null=True)


def frequency_difference(a: DocumentSums, b: DocumentSums) -> tuple[F64, F64, F64]:
    """Frequency in b minus that in a, with its z and p; the documents are others. NaN is null: [F] each."""
    if not (a.totals.rows and b.totals.rows):
        nothing = np.full(len(a.columns["active"]), np.nan)
        return nothing, nothing, nothing
    change = _independent_change(a, b, "active")
    _, z, p = judged(change)
    return change.difference, z, p


def _independent_change(a: DocumentSums, b: DocumentSums, measure: str) -> Change:
    """Two sets of documents that have nothing to do with each other."""
    first, second = a.estimate(measure), b.estimate(measure)
    one, two = first.variance(), second.variance()
    d = (a.totals.documents, b.totals.documents)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = (one + two) ** 2 / (one**2 / (d[0] - 1) + two**2 / (d[1] - 1))
    # 0 / 0 where the feature fires alike in all documents: then the freedom of a pooled variance
    freedom = np.where(one + two > 0, freedom, sum(d) - 2)
    variance = np.maximum(one + two, _pooled(first, second))
    # the share of the smaller set: of documents or of rows, whichever is less
    rows = (a.totals.rows, b.totals.rows)
    smaller_share = min(min(d) / sum(d), min(rows) / sum(rows))
    expected = (a.columns["documents"] + b.columns["documents"]) * smaller_share
    return Change(second.p - first.p, variance, freedom, expected >= SUPPORT)


def _pooled(a: Estimate, b: Estimate) -> F64:
    """The variance of the difference if all documents were of one population."""
    d = a.totals.documents + b.totals.documents
    p = (a.x + b.x) / (a.totals.rows + b.totals.rows)
    squares = (a.squares(p) + b.squares(p)) / (a.totals.rows_squared + b.totals.rows_squared)
    inverse_size = sum(side.totals.rows_squared / float(side.totals.rows) ** 2 for side in (a, b))
    return squares * (inverse_size * d / (d - 1))


def _paired(a: DocumentSums, b: DocumentSums, changes: DocumentSums, measure: str) -> Change:
    """The same documents, with the same counted rows."""
    assert a.totals == b.totals == changes.totals
    first, second = a.estimate(measure), b.estimate(measure)
    squared = changes.columns[f"{measure}_change_squared"].astype(np.float64)
    # the ratio estimate of x_b - x_a: its square is summed by document, its product with n is linear
    change = Estimate(second.x - first.x, squared, second.x_rows - first.x_rows, changes.totals)
    freedom = np.full(len(squared), changes.totals.documents - 1.0)
    supported = changes.columns[f"{measure}_changed"] >= 2 * SUPPORT
    return Change(change.p, change.variance(), freedom, supported)


def _tested(name: str, a: F64, b: F64, change: Change) -> dict[str, F64]:
    """The columns of one measure; NaN is null."""
    from scipy import stats

    error, z, p = judged(change)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.where(a * b > 0, np.log2(np.abs(b)) - np.log2(np.abs(a)), np.nan)
    # features that were not tested are no part of the family that q corrects for
    q = np.full(len(z), np.nan)
    tested = ~np.isnan(p)
    q[tested] = stats.false_discovery_control(p[tested])
    return {
        f"{name}_a": a,
        f"{name}_b": b,
        f"{name}_difference": change.difference,
        f"{name}_log2_ratio": ratio,
        f"{name}_se": error,
        f"{name}_z": z,
        f"{name}_p": p,
        f"{name}_q": q,
    }


def judged(change: Change) -> tuple[F64, F64, F64]:
    """Standard error, z and p."""
    from scipy import stats

    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(change.variance)
        z = np.where(change.supported & (error > 0), change.difference / error, np.nan)
    return error, z, 2 * stats.t.sf(np.abs(z), change.freedom)
