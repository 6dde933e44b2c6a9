import math
from collections import Counter
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.statistics.features.histogram import PERCENTS, Histogram, bin_edges, bins_of, quantiles
from tests.fixtures.tokens import counted_values, fold, made_shards, totals_of
from tests.statistics.conformance import StatisticConformance

HISTOGRAM = Histogram()
QUANTILES = [f"q{percent:02d}_active" for percent in PERCENTS]

finite = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(bool)


class TestHistogram(StatisticConformance):
    name = "histogram"
    never: ClassVar[dict[str, Any]] = {
        **dict.fromkeys(("min_activation", "max_activation", *QUANTILES)),
        "histogram_bins": [],
        "histogram_counts": [],
    }
    once: ClassVar[dict[str, Any]] = {
        **dict.fromkeys(("min_activation", "max_activation", *QUANTILES), 1.5),
        "histogram_bins": [1020],
        "histogram_counts": [1],
    }


def state_of(bins: list[int], counts: list[int], low: float, high: float) -> pl.DataFrame:
    columns = {"min_activation": [low], "max_activation": [high], "bins": [bins], "bin_counts": [counts]}
    return pl.DataFrame({"feature": [0]} | columns, schema={"feature": pl.UInt32()} | HISTOGRAM.state)


@given(st.lists(finite, min_size=1))
def test_a_value_lies_in_its_half_open_bin(values: list[float]) -> None:
    x = np.array(values, np.float32)
    left, right = bin_edges(bins_of(x))
    assert np.all(left < right)
    positive = x > 0
    assert np.all((left <= x)[positive] & (x < right)[positive])
    assert np.all((left < x)[~positive] & (x <= right)[~positive])


def test_there_are_eight_bins_in_an_octave_and_an_edge_belongs_to_the_bin_away_from_zero() -> None:
    edges = 1 + np.arange(8, dtype=np.float32) / 8
    assert np.diff(bins_of(edges)).tolist() == [1] * 7
    below = np.nextafter(edges, np.float32(0))
    assert (bins_of(edges) - bins_of(below)).tolist() == [1] * 8
    assert (bins_of(-below) - bins_of(-edges)).tolist() == [1] * 8


@given(st.lists(finite, min_size=2))
def test_bins_sort_as_activations_do(values: list[float]) -> None:
    assert np.all(np.diff(bins_of(np.sort(np.array(values, np.float32))).astype(int)) >= 0)


@pytest.mark.parametrize("signed", [False, True])
def test_counts_extremes_and_quantiles_equal_brute_force(signed: bool) -> None:
    shards = made_shards((70, 2, 500), signed=signed)
    table = HISTOGRAM.finalize(fold(HISTOGRAM, shards), totals_of(shards), 12)
    for feature in range(11):
        x = counted_values(shards, feature)
        active, row = x[x != 0], table.row(feature, named=True)
        counts = Counter(bins_of(active.astype(np.float32)).tolist())
        assert row["histogram_bins"] == sorted(counts)
        assert row["histogram_counts"] == [counts[b] for b in sorted(counts)]
        assert sum(row["histogram_counts"]) == len(active)
        assert (row["min_activation"], row["max_activation"]) == (active.min(), active.max())
        for percent in PERCENTS:
            exact = np.quantile(active, percent / 100, method="inverted_cdf")
            assert abs(row[f"q{percent:02d}_active"] - exact) <= abs(exact) / 16


@given(st.lists(st.floats(2**-126, 2.0**15, width=32), min_size=1, max_size=60))
def test_quantiles_are_within_a_sixteenth(values: list[float]) -> None:
    x = np.sort(np.array(values, np.float32))
    bins, counts = np.unique(bins_of(x), return_counts=True)
    answer = quantiles(state_of(bins.tolist(), counts.tolist(), x[0], x[-1]))
    for percent in PERCENTS:
        exact = float(x[math.ceil(len(x) * percent / 100) - 1])
        assert abs(answer[f"q{percent:02d}_active"][0] - exact) <= exact / 16


def test_ranks_are_exact_beyond_what_floats_count() -> None:
    half = 2**55
    state = state_of([1016, 1024], [half, half], 1.0, 2.0)
    assert quantiles(state)["q50_active"][0] == pytest.approx(1.0625)
    state = state_of([1016, 1024], [half - 1, half + 1], 1.0, 3.0)
    assert quantiles(state)["q50_active"][0] == pytest.approx(2.125)


@pytest.mark.parametrize("n", [100, 101, 2**50 + 69])  # the last times 0.99 in float64 rounds off its rank
def test_a_quantile_is_the_value_at_its_rank_to_one_row(n: int) -> None:
    for percent in PERCENTS:
        rank = -(n * -percent // 100)
        for below, expected in ((rank, 1.0625), (rank - 1, 2.125)):
            state = state_of([1016, 1024], [below, n - below], 1.0, 3.0)
            assert quantiles(state)[f"q{percent:02d}_active"][0] == expected


def test_counts_beyond_32_bits_merge_exactly() -> None:
    state = state_of([-1017, 1016], [2**33, 2**40 + 1], -1.0, 1.0)
    merged = HISTOGRAM.combine([state, state_of([1016, 1030], [2**33, 1], 1.0, 4.0)])
    assert merged["bins"].to_list() == [[-1017, 1016, 1030]]
    assert merged["bin_counts"].to_list() == [[2**33, 2**40 + 1 + 2**33, 1]]
    assert merged.row(0)[1:3] == (-1.0, 4.0)
