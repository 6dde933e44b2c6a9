"""Central moments of activations, over the active rows and over all counted rows.

Kept are, per feature, the number n of active rows, their mean, and M_p, the sum over active rows of
(activation - mean)**p for p = 2, 3, 4, in float64. They merge without loss by the pairwise formulas of
P. Pébay, "Formulas for robust, one-pass parallel computation of covariances and arbitrary-order statistical
moments", Sandia report SAND2008-6212 (2008), equations 2.1 and 3.1, which for p = 2 are those of Chan, Golub
and LeVeque (1979). The moments over all rows are those of the active rows merged with zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from pipeline.statistics.features.statistic import every_feature, feature_union, ratio
from schemas.tables.tables import Schema
from schemas.values import F64, I64, Postings, TokenShard, Totals


class Sums(NamedTuple):
    """Count int64 [F], mean and central power sums float64 [F]; the mean of no value is 0."""

    n: I64
    mean: F64
    m2: F64
    m3: F64
    m4: F64


STATE: Schema = {
    "n_active": pl.Int64(),
    **dict.fromkeys(("mean", "m2", "m3", "m4"), pl.Float64()),
}
OVER_ALL = ("frequency", "mean_all", "var_all", "std_all", "sigma_over_mu", "skewness_all", "kurtosis_all")
OVER_ACTIVE = ("mean_active", "var_active", "std_active", "skewness_active", "kurtosis_active")
TABLE: Schema = {"n_active": pl.Int64(), **dict.fromkeys(OVER_ALL + OVER_ACTIVE, pl.Float64())}


def moments(values: F64, offsets: I64) -> Sums:
    """Moments of float64 `values` [Z] cut by `offsets` [F + 1] into groups, none of them empty.

    What rounding leaves of the mean in the deviations is removed from the mean and from the sums. Of equal
    values that came from float32 the variance is exactly 0.
    """
    starts, n = offsets[:-1], np.diff(offsets)
    mean = np.add.reduceat(values, starts) / n
    d = values - np.repeat(mean, n)
    d2 = d * d
    s1, s2, s3, s4 = (np.add.reduceat(power, starts) for power in (d, d2, d2 * d, d2 * d2))
    # in exact arithmetic s1 is 0; the sums are moved from the rounded mean to mean + rest
    rest = s1 / n
    return Sums(
        n,
        mean + rest,
        s2 - rest * s1,
        s3 - 3 * rest * s2 + 2 * rest**2 * s1,
        s4 - 4 * rest * s3 + 6 * rest**2 * s2 - 3 * rest**3 * s1,
    )


def merge(a: Sums, b: Sums) -> Sums:
    """Moments of the union of two disjoint sets of values; a side with n = 0 leaves the other as it is."""
    na, nb = a.n.astype(np.float64), b.n.astype(np.float64)
    n = np.maximum(na + nb, 1)  # counts may pass 2**32: their products belong in float64
    delta = b.mean - a.mean
    wa, wb = na / n, nb / n
    pair = delta**2 * na * wb
    return Sums(
        a.n + b.n,
        a.mean + delta * wb,
        a.m2 + b.m2 + pair,
        a.m3 + b.m3 + pair * delta * (wa - wb) + 3 * delta * (wa * b.m2 - wb * a.m2),
        a.m4
        + b.m4
        + pair * delta**2 * (wa**2 - wa * wb + wb**2)
        + 6 * delta**2 * (wa**2 * b.m2 + wb**2 * a.m2)
        + 4 * delta * (wa * b.m3 - wb * a.m3),
    )


class Moments:
    """Count, mean, variance (ddof 0), skewness, and excess kurtosis (0 for a normal; SciPy's default).

    `*_active` is over active rows, `*_all` over counted rows, zeros included. Null: everything `_active` of a
    feature that never fires, `var_active` below two active rows, skewness and kurtosis at variance 0,
    `sigma_over_mu` (that of all rows: std_all / mean_all) at mean_all 0, and all of it over no counted row.
    Of negative activations means are negative, and `sigma_over_mu` has the sign of mean_all.
    """

    name = "moments"
    state = STATE
    table = TABLE

    def partial(self, postings: Postings, shard: TokenShard) -> pl.DataFrame:  # noqa: ARG002
        """Two passes over the shard's values, in row order."""
        sums = moments(postings.values.astype(np.float64), postings.offsets)
        return pl.DataFrame({"feature": postings.features, **sums._asdict()}).rename({"n": "n_active"})

    def combine(self, states: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """Pébay's merge, feature by feature, one state after another."""
        features, places = feature_union(states)
        sums = _zeros(len(features))
        for state, at in zip(states, places, strict=True):
            before = Sums(*[column[at] for column in sums])  # type: ignore[arg-type]
            after = merge(before, _read(state, np.arange(state.height), state.height))
            for column, merged in zip(sums, after, strict=True):
                column[at] = merged
        return pl.DataFrame({"feature": features, **sums._asdict()}).rename({"n": "n_active"})

    def finalize(self, state: pl.DataFrame, totals: Totals, d_sae: int) -> pl.DataFrame:
        """Moments of active rows, and of those merged with counted_rows - n_active zeros."""
        active = _read(state, state["feature"].to_numpy().astype(np.int64), d_sae)
        zero = np.zeros(d_sae)
        zeros = Sums(totals.counted_rows - active.n, zero, zero, zero, zero)
        # merging subtracts nearly all of a rare feature's mean again, and with it most of its digits
        merged = merge(active, zeros)._replace(mean=active.mean * active.n / max(totals.counted_rows, 1))
        frame = pl.DataFrame(
            {f"{name}_active": column for name, column in active._asdict().items()}
            | {f"{name}_all": column for name, column in merged._asdict().items()}
        )
        return every_feature(state.select("feature"), d_sae).hstack(frame.select(_columns()))


def _read(state: pl.DataFrame, places: I64, length: int) -> Sums:
    """The state's columns, scattered to `places` among zeros."""
    sums = _zeros(length)
    for column, name in zip(sums, STATE, strict=True):
        column[places] = state[name].to_numpy()
    return sums


def _zeros(length: int) -> Sums:
    """Moments of no value."""
    return Sums(np.zeros(length, np.int64), *(np.zeros(length) for _ in range(4)))


def _columns() -> list[pl.Expr]:
    """The table's columns from n, mean, m2, m3, m4 with the endings `_active` and `_all`."""
    n, mean = pl.col("n_active"), pl.col("mean_active")
    rows, mean_all = pl.col("n_all"), pl.col("mean_all")
    var_all = ratio(pl.col("m2_all"), rows)
    var_active = pl.when(n > 1).then(pl.col("m2_active") / n)
    return [
        n,
        ratio(n, rows).alias("frequency"),
        pl.when(rows > 0).then(mean_all).alias("mean_all"),
        var_all.alias("var_all"),
        var_all.sqrt().alias("std_all"),
        ratio(var_all.sqrt(), mean_all).alias("sigma_over_mu"),
        *_shape("all"),
        pl.when(n > 0).then(mean).alias("mean_active"),
        var_active.alias("var_active"),
        var_active.sqrt().alias("std_active"),
        *_shape("active"),
    ]


def _shape(rows: str) -> list[pl.Expr]:
    """Skewness and excess kurtosis."""
    n, m2, m3, m4 = (pl.col(f"{name}_{rows}") for name in ("n", "m2", "m3", "m4"))
    var = ratio(m2, n)
    return [
        ratio(m3 / n, var**1.5).alias(f"skewness_{rows}"),
        (ratio(m4 / n, var**2) - 3).alias(f"kurtosis_{rows}"),
    ]
