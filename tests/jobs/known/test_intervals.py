"""Intervals over independent rows: their ends, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
from scipy import stats

from jobs.studies.known.intervals import mean_interval, share_interval


def test_the_interval_of_a_share_is_that_of_clopper_and_pearson():
    n = np.array([0, 1, 7, 499, 500])
    low, high = share_interval(n, 500)
    for place, k in enumerate(n.tolist()):
        expected = stats.binomtest(k, 500).proportion_ci(method="exact")
        np.testing.assert_allclose((low[place], high[place]), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(share_interval(np.array([0, 1]), 1), [[0, 0.025], [0.975, 1]])


def test_the_interval_of_a_mean_is_students_and_wider_by_what_is_rounded():
    values = np.random.default_rng(0).normal(3, 1, 40)
    mean, variance, n = np.array([values.mean()]), np.array([values.var()]), np.array([40])
    low, high = mean_interval(mean, variance, n, 0.0)
    expected = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    np.testing.assert_allclose((low[0], high[0]), expected, rtol=1e-12)
    wider = mean_interval(mean, variance, n, 0.01)
    np.testing.assert_allclose(wider[1] - high, 0.01 * mean)


def test_below_two_rows_nothing_is_said_of_a_mean():
    low, high = mean_interval(np.array([1.0, np.nan]), np.array([np.nan, np.nan]), np.array([1, 0]), 0.0)
    assert np.isnan([*low, *high]).all()


def test_over_many_draws_95_in_100_intervals_hold_the_truth():
    rng, p, rows = np.random.default_rng(1), np.geomspace(0.002, 0.5, 40), 2000
    held_share, held_mean = [], []
    for _ in range(120):
        n = rng.binomial(rows, p)
        low, high = share_interval(n, rows)
        held_share.append((low <= p) & (p <= high))
        draws = [rng.normal(2, 0.5, k) for k in n]
        mean, variance = (np.array([f(d) if len(d) else np.nan for d in draws]) for f in (np.mean, np.var))
        low, high = mean_interval(mean, variance, n, 0.0)
        held_mean += ((low <= 2) & (high >= 2))[n > 1].tolist()
    share = np.mean(held_share)
    assert 0.95 <= share < 0.985, share  # counts are whole: the exact interval is never short
    error = (0.05 * 0.95 / len(held_mean)) ** 0.5
    assert abs(np.mean(held_mean) - 0.95) < 4 * error
