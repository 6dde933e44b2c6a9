"""Ranks over draws of shards, against putting the drawn shards together and computing everything anew."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import pipeline.statistics as statistics
from pipeline.statistics.resampling import (
    ABSENT,
    POWERS,
    RankIntervals,
    Resampled,
    can_resample,
    draw_weights,
    highest_power,
    ranks,
)
from tests.fixtures.tokens import Made, made_shards

D_SAE, SHARDS, DRAWS = 12, 9, 6
COLUMNS = [name for names in POWERS.values() for name in names]


@pytest.fixture(scope="module", params=[False, True], ids=["positive", "signed"])
def shards(request: pytest.FixtureRequest) -> list[Made]:
    made = made_shards([40] * SHARDS, D_SAE, signed=request.param)
    for shard in made[1:]:
        shard.dense[:, 3] = 0  # fires in one shard alone
    return made


def drawn_anew(shards: list[Made], weights: NDArray[np.int64]) -> NDArray[np.float32]:
    """The counted rows of the shards, as often as they were drawn: [N, D_SAE]."""
    rows = [
        made.dense[made.tokens.counted] for made, w in zip(shards, weights, strict=True) for _ in range(w)
    ]
    return np.concatenate(rows)


def by_hand(dense: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    from scipy import stats

    with np.errstate(invalid="ignore", divide="ignore"):
        x = dense.astype(np.float64)
        active = np.where(x != 0, x, np.nan)
        fired = (x != 0).sum(0)
        mean = np.array(
            [a[~np.isnan(a)].mean() if n else np.nan for a, n in zip(active.T, fired, strict=True)]
        )
        var = np.array(
            [a[~np.isnan(a)].var() if n > 1 else np.nan for a, n in zip(active.T, fired, strict=True)]
        )
        return {
            "n_active": fired,
            "frequency": fired / len(x),
            "mean_all": x.mean(0),
            "mean_active": mean,
            "var_all": x.var(0),
            "std_all": x.std(0),
            "sigma_over_mu": x.std(0) / x.mean(0),
            "var_active": var,
            "std_active": np.sqrt(var),
            "skewness_all": np.where(fired > 0, stats.skew(x, axis=0), np.nan),
            "kurtosis_all": np.where(fired > 0, stats.kurtosis(x, axis=0), np.nan),
        }


def test_every_draw_weighs_as_many_shards_as_there_are_and_the_seed_fixes_it() -> None:
    weights = draw_weights(500, 20, 7)
    assert (weights.sum(axis=1) == 20).all()
    assert weights.min() == 0
    assert weights.mean() == 1
    assert weights.var() == pytest.approx(0.95, abs=0.05)
    np.testing.assert_array_equal(weights, draw_weights(500, 20, 7))
    assert (weights != draw_weights(500, 20, 8)).any()


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_a_draw_has_the_moments_of_the_shards_it_drew(shards: list[Made], shift: float) -> None:
    if shift:  # a mean that is large next to the spread eats the digits of plain sums of squares
        shards = [
            Made(made.tokens, np.where(made.dense != 0, made.dense + np.float32(shift), 0)) for made in shards
        ]
    weights = draw_weights(DRAWS, SHARDS, 0)
    partials = [statistics.partials(made.postings, made.tokens) for made in shards]
    state = statistics.combine([statistics.empty_state(), *partials])
    centre = state["mean"].to_numpy()
    everywhere = np.zeros(D_SAE)
    everywhere[state["feature"].to_numpy()] = centre
    sums = Resampled(everywhere, DRAWS, highest_power(COLUMNS))
    for partial, weight in zip(partials, weights.T, strict=True):
        sums.add(partial["feature"].to_numpy().astype(np.int64), partial, weight)
    for draw in range(DRAWS):
        dense = drawn_anew(shards, weights[draw])
        result, expected = sums.table(draw, len(dense)), by_hand(dense)
        for name, values in expected.items():
            if shift and name in ("skewness_all", "kurtosis_all"):
                continue
            column = result[name].cast(pl.Float64).fill_null(np.nan)
            np.testing.assert_allclose(column, values, rtol=1e-6 if shift else 1e-9, atol=1e-9, err_msg=name)
    assert (weights[:, 0] == 0).any()  # and feature 3 then has no value


def test_ranks_are_those_of_a_ranking_ties_by_feature() -> None:
    values = np.array([2.0, np.nan, 5.0, 2.0, -1.0, 5.0])
    assert ranks(values).tolist() == [2, ABSENT, 0, 3, 4, 1]
    assert ranks(np.array([np.nan])).tolist() == [ABSENT]


@pytest.mark.parametrize("draws", [1, 7, 40, 100, 161])
def test_intervals_are_quantiles_over_the_draws_in_which_a_feature_has_a_rank(draws: int) -> None:
    rng = np.random.default_rng(0)
    every = rng.integers(0, 1000, (draws, 30))
    every[rng.random((draws, 30)) < np.linspace(0, 1, 30)] = ABSENT
    intervals = RankIntervals(30, draws)
    for result in every:
        intervals.add(result)
    low, high = intervals.interval()
    for feature, column in enumerate(every.T):
        there = column[column != ABSENT]
        expected = [ABSENT, ABSENT]
        if len(there):
            expected = np.quantile(there, [0.025, 0.975], method="inverted_cdf").tolist()
        assert [low[feature], high[feature]] == expected


def test_what_is_no_moment_cannot_be_resampled() -> None:
    assert can_resample("sigma_over_mu")
    assert not can_resample("max_activation")
    assert (highest_power(["frequency"]), highest_power(["mean_all", "sigma_over_mu"])) == (0, 2)
