import functools
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.statistics.features.moments import STATE, Moments
from schemas.values import Totals
from tests.fixtures.tokens import Made, counted_values, fold, made_shards, shard_around, totals_of
from tests.statistics.conformance import SIZES, StatisticConformance

MOMENTS = Moments()
NULLS = ("sigma_over_mu", "skewness_all", "kurtosis_all", "mean_active", "var_active", "std_active")


class TestMoments(StatisticConformance):
    name = "moments"
    never: ClassVar[dict[str, Any]] = {
        "n_active": 0,
        **dict.fromkeys(("frequency", "mean_all", "var_all", "std_all"), 0.0),
        **dict.fromkeys((*NULLS, "skewness_active", "kurtosis_active")),
    }
    once: ClassVar[dict[str, Any]] = {
        "n_active": 1,
        "mean_active": 1.5,
        **dict.fromkeys(("var_active", "std_active", "skewness_active", "kurtosis_active")),
    }


def one_feature(*shards: list[float]) -> list[Made]:
    """Shards of a single feature, one row per value, 0 for none."""
    return [
        shard_around(np.array(values, np.float32).reshape(-1, 1), row_start=100 * number)
        for number, values in enumerate(shards)
    ]


def row_of(shards: list[Made], feature: int = 0) -> dict[str, float]:
    d_sae = shards[0].dense.shape[1]
    return MOMENTS.finalize(fold(MOMENTS, shards), totals_of(shards), d_sae).row(feature, named=True)


@pytest.mark.parametrize("signed", [False, True])
def test_every_column_equals_numpy_and_scipy_over_the_stored_values(signed: bool) -> None:
    shards = made_shards((50, 1, 300, 7), signed=signed)
    for feature in range(10):
        x = counted_values(shards, feature)
        active, row = x[x != 0], row_of(shards, feature)
        assert row["n_active"] == len(active)
        assert row["frequency"] == len(active) / len(x)
        for rows, values in (("all", x), ("active", active)):
            close = functools.partial(pytest.approx, rel=1e-10, abs=1e-14)
            assert row[f"mean_{rows}"] == close(values.mean())
            assert row[f"var_{rows}"] == close(values.var())
            assert row[f"std_{rows}"] == close(values.std())
            assert row[f"skewness_{rows}"] == close(scipy.stats.skew(values))
            assert row[f"kurtosis_{rows}"] == close(scipy.stats.kurtosis(values))
        assert row["sigma_over_mu"] == pytest.approx(x.std() / x.mean(), rel=1e-10)


def test_the_two_conventions_are_tied_by_the_frequency() -> None:
    shards = made_shards((50, 120))
    for feature in range(10):
        row = row_of(shards, feature)
        f, mean, var = row["frequency"], row["mean_active"], row["var_active"]
        assert row["mean_all"] == pytest.approx(f * mean, rel=1e-13)
        assert row["var_all"] == pytest.approx(f * (var + mean**2) - row["mean_all"] ** 2, rel=1e-12)
        assert f * totals_of(shards).counted_rows == pytest.approx(row["n_active"], abs=1e-9)


def test_a_small_spread_far_from_zero_keeps_its_digits() -> None:
    rng = np.random.default_rng(1)
    values = [rng.normal(1e4, 1e-2, size) for size in (5, 1000, 1, 333)]
    shards = one_feature(*(v.tolist() for v in values))
    x = np.concatenate(values).astype(np.float32).astype(np.float64)
    row = row_of(shards)
    assert row["var_active"] == row["var_all"] == pytest.approx(x.var(), rel=1e-10)
    assert row["mean_active"] == pytest.approx(x.mean(), rel=1e-15)
    exact = x - 1e4  # exact in float64, so that the reference loses nothing
    assert row["skewness_active"] == pytest.approx(scipy.stats.skew(exact), abs=1e-9)
    assert row["kurtosis_active"] == pytest.approx(scipy.stats.kurtosis(exact), rel=1e-9)


def test_a_shard_keeps_the_third_moment_of_a_spread_at_the_rounding_of_its_mean() -> None:
    x = np.float32(1e4) + np.arange(99, dtype=np.float32) ** 2 // 500 * np.float32(2**-10)
    exact = x.astype(np.float64) - 1e4
    row = row_of(one_feature(x.tolist()))
    assert row["skewness_active"] == pytest.approx(scipy.stats.skew(exact), rel=1e-12)
    assert row["kurtosis_active"] == pytest.approx(scipy.stats.kurtosis(exact), rel=1e-12)


@given(st.floats(2.0**-24, 2.0**16, width=32), st.lists(st.integers(1, 300), min_size=1, max_size=3))
def test_values_that_are_all_equal_have_variance_zero_to_the_last_bit(value: float, sizes: list[int]) -> None:
    row = row_of(one_feature(*([value] * size for size in sizes)))
    assert row["var_all"] == 0
    assert row["mean_all"] == row["mean_active"] == value
    assert row["sigma_over_mu"] == 0
    assert row["skewness_active"] is row["kurtosis_all"] is None


def test_activations_that_cancel_have_no_sigma_over_mu() -> None:
    row = row_of(one_feature([2, -2, 0]))
    assert row["mean_all"] == 0
    assert row["var_all"] == pytest.approx(8 / 3)
    assert row["sigma_over_mu"] is None


def test_counts_beyond_32_bits_merge_exactly() -> None:
    made = one_feature([1, 2, 4, 4, 0.5])[0]
    once = state = MOMENTS.partial(made.postings, made.tokens)
    for _ in range(34):
        state = MOMENTS.combine([state, state])
    n = 5 * 2**34
    assert state["n_active"].to_list() == [n]
    row = MOMENTS.finalize(state, Totals(4 * n, 4 * n, 1, 1), 1).row(0, named=True)
    expected = MOMENTS.finalize(once, Totals(20, 20, 1, 1), 1).row(0, named=True)
    assert row == pytest.approx(expected | {"n_active": n}, rel=1e-12)
    odd = MOMENTS.combine([state, once])
    assert odd["n_active"].to_list() == [n + 5]


def test_means_of_batches_alone_would_miss_the_spread_inside_them() -> None:
    shards = one_feature([1, 9], [5], [4, 6, 5, 5])
    x = np.array([1, 9, 5, 4, 6, 5, 5])
    batch_means = np.array([5.0, 5.0, 5.0])
    assert batch_means.var() == 0
    assert row_of(shards)["var_active"] == pytest.approx(x.var(), rel=1e-14)


def test_a_left_fold_is_the_same_to_the_last_bit_each_time() -> None:
    a, b = (fold(MOMENTS, made_shards(SIZES)) for _ in range(2))
    for name in ("mean", "m2", "m3", "m4"):
        assert a[name].to_numpy().tobytes() == b[name].to_numpy().tobytes()


activations = st.floats(-(2.0**15), 2.0**15, width=32, allow_subnormal=False).filter(
    lambda x: x == 0 or abs(x) > 1e-7
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(activations, max_size=8), min_size=1, max_size=5))
def test_moments_equal_exact_fractions(shards: list[list[float]]) -> None:
    x = [Fraction(value) for shard in shards for value in shard]
    row = row_of(one_feature(*shards))
    for rows, values in (("all", x), ("active", [value for value in x if value])):
        n = len(values)
        if n < 2:
            continue
        mean = sum(values) / n
        var = float(sum((value - mean) ** 2 for value in values) / n)
        # rounding acts as if each value had moved by a part in 1e15 of the largest
        moved = 1e-14 * float(max(map(abs, values)))
        spread = float(max(values) - min(values))
        assert row[f"mean_{rows}"] == pytest.approx(float(mean), rel=1e-10, abs=moved)
        assert row[f"var_{rows}"] == pytest.approx(var, rel=1e-10, abs=moved * spread)


def test_polars_own_aggregates_agree() -> None:
    made = made_shards((400,))[0]
    p = made.postings
    postings = pl.DataFrame({"feature": np.repeat(p.features, np.diff(p.offsets)), "activation": p.values})
    mine = MOMENTS.finalize(fold(MOMENTS, [made]), made.totals, 12)
    a = pl.col("activation").cast(pl.Float64)
    theirs = postings.group_by("feature").agg(
        pl.len().alias("n"), a.mean().alias("mean"), a.skew().alias("skew"), a.kurtosis().alias("kurtosis")
    )
    for row in theirs.filter(pl.col("n") > 1).iter_rows(named=True):
        ours = mine.row(row["feature"], named=True)
        assert ours["n_active"] == row["n"]
        assert ours["mean_active"] == pytest.approx(row["mean"], rel=1e-12)
        assert ours["skewness_active"] == pytest.approx(row["skew"], rel=1e-10)
        assert ours["kurtosis_active"] == pytest.approx(row["kurtosis"], rel=1e-10)


def test_the_mean_over_all_rows_of_a_feature_that_fires_once_in_very_many_keeps_its_digits():
    state = pl.DataFrame(
        {"feature": [0], "n_active": [1], "mean": [1 / 3], "m2": [0.0], "m3": [0.0], "m4": [0.0]},
        schema={"feature": pl.UInt32, **STATE},
    )
    table = Moments().finalize(state, Totals(10**9, 10**9, 1, 1), 1)
    assert table["mean_all"][0] == pytest.approx(1 / 3 / 10**9, rel=1e-15)
    assert table["sigma_over_mu"][0] == pytest.approx((10**9 - 1) ** 0.5, rel=1e-12)
