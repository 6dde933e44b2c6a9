"""Intervals of frequencies: the formulas by hand, and how often they hold the truth when features burst."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from pipeline.statistics.documents.clustered import DocumentTotals, Estimate
from pipeline.statistics.documents.intervals import effective, frequency_interval, rule_of_three

F = 1500


def estimate(n: Any, x: Any) -> Estimate:
    """Of active rows x [D, F] of documents with n rows [D]."""
    n, x = np.asarray(n, np.int64), np.asarray(x, np.float64).reshape(len(n), -1)
    totals = DocumentTotals(len(n), int(n.sum()), int((n**2).sum()))
    return Estimate(x.sum(0), (x**2).sum(0), (x * n[:, None]).sum(0), totals)


def test_the_interval_is_korn_and_graubards_with_the_degrees_of_freedom_of_the_bursts() -> None:
    rng = np.random.default_rng(0)
    n = rng.integers(20, 300, 60)
    x = rng.binomial(n[:, None], rng.random((60, 7)) ** 9 * (rng.random((60, 7)) < 0.6))
    result = frequency_interval(estimate(n, x))
    for f in range(7):
        p = x[:, f].sum() / n.sum()
        variance = 60 / 59 * ((x[:, f] - p * n) ** 2).sum() / n.sum() ** 2
        e = x[:, f].sum() ** 2 / (x[:, f] ** 2).sum()
        t = stats.t.ppf(0.975, min(max(e, 1), 59))
        size = min(p * (1 - p) / variance, n.sum()) * (stats.norm.ppf(0.975) / t) ** 2
        ends = (
            stats.beta.ppf(0.025, p * size, size - p * size + 1),
            stats.beta.ppf(0.975, p * size + 1, size - p * size),
        )
        assert result.error[f] == pytest.approx(variance**0.5, rel=1e-9)
        assert (result.low[f], result.high[f]) == pytest.approx(ends, rel=1e-6)
        assert result.low[f] < p < result.high[f]


def test_rows_drawn_one_by_one_have_nearly_the_interval_of_clopper_and_pearson() -> None:
    x = np.arange(2000) < 300
    result = frequency_interval(estimate(np.ones(2000), x))
    exact = stats.binomtest(300, 2000).proportion_ci(method="exact")
    assert (result.low[0], result.high[0]) == pytest.approx((exact.low, exact.high), rel=0.005)


def test_what_fires_never_or_always_has_the_rule_of_three_over_documents_as_its_end() -> None:
    n = np.array([50, 50, 10, 90])
    result = frequency_interval(estimate(n, np.stack([0 * n, n], axis=1)))
    bound = 1 - 0.05 ** (1 / (200**2 / (50**2 + 50**2 + 10**2 + 90**2)))
    assert np.isnan(result.error).all()
    assert (result.low[0], result.high[0]) == (0, pytest.approx(bound))
    assert (result.low[1], result.high[1]) == (pytest.approx(1 - bound), 1)
    assert rule_of_three(1000) == pytest.approx(stats.binomtest(0, 1000).proportion_ci(0.9).high)
    assert rule_of_three(1000) == pytest.approx(3 / 1000, rel=0.003)


def test_one_document_tells_nothing_of_the_others_and_no_document_nothing() -> None:
    result = frequency_interval(estimate([80], [[3, 0]]))
    assert np.isnan([result.error[0], result.low[0], result.high[0]]).all()
    assert (result.low[1], result.high[1]) == (0, pytest.approx(0.95))
    nothing = DocumentTotals()
    assert effective(nothing) == 0
    assert np.isnan(rule_of_three(0))


def bursts(
    rng: np.random.Generator, documents: int, share: float, burst: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Documents of unequal length; a feature is about some of them, and there fires at rates of its own."""
    n = np.maximum(1, rng.lognormal(np.log(400), 0.8, documents)).astype(np.int64)
    about = rng.random((documents, F)) < share
    rate = rng.beta(0.5, 0.5 * (1 - burst) / burst, (documents, F))
    return n, rng.binomial(n[:, None], np.where(about, rate, 0))


@pytest.mark.slow
@pytest.mark.parametrize("burst", [0.1, 0.01])
@pytest.mark.parametrize(
    ("documents", "share"), [(15, 0.2), (60, 0.05), (250, 0.01), (250, 0.2), (800, 0.01), (800, 1.0)]
)
def test_nineteen_of_twenty_intervals_hold_the_frequency_of_a_feature_that_bursts(
    documents: int, share: float, burst: float
) -> None:
    rng = np.random.default_rng(0)
    held, rows_held = [], []
    for _ in range(4):
        n, x = bursts(rng, documents, share, burst)
        fired, truth = x.sum(0) > 0, share * burst
        result = frequency_interval(estimate(n, x))
        held.append(((result.low <= truth) & (truth <= result.high))[fired].mean())
        k, total = x.sum(0), n.sum()
        low = stats.beta.ppf(0.025, k, total - k + 1)
        high = stats.beta.ppf(0.975, k + 1, total - k)
        rows_held.append(((low <= truth) & (truth <= high))[fired].mean())
    assert np.mean(held) > 0.92
    if share >= 0.2 and documents >= 250:
        assert np.mean(held) == pytest.approx(0.95, abs=0.025)  # and no wider than they must be
    assert np.mean(rows_held) < 0.5  # rows taken as independent


@pytest.mark.slow
def test_a_feature_that_never_fired_is_below_its_bound_over_documents_not_over_rows() -> None:
    rng = np.random.default_rng(1)
    for share in (1 / 400, 1 / 200, 2 / 200):
        wrong, wrong_of_rows = [], []
        for _ in range(5):
            n, x = bursts(rng, 200, share, 0.1)
            never, truth = x.sum(0) == 0, share * 0.1
            bound = frequency_interval(estimate(n, x)).high[never]
            wrong.append((bound < truth).sum() / F)
            wrong_of_rows.append(never.mean() * (rule_of_three(n.sum()) < truth))
        assert np.mean(wrong) <= 0.05
        assert np.mean(wrong_of_rows) > 0.1
