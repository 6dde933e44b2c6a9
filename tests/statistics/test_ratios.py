"""Ratios of sums over documents: exact merging, and intervals that hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipeline.statistics.documents.ratios import Moments, moments, ratio

ABOVE, BELOW = np.array([1.0, -1.0, 0.0]), np.array([0.0, 0.0, 1.0])


def drawn(documents, seed=0):
    """Totals of documents: two losses that move together, and the number of predictions."""
    rng = np.random.default_rng(seed)
    n = rng.integers(1, 200, documents).astype(float)
    level = rng.normal(3, 0.5, documents)
    return np.stack([n * (level + rng.normal(0.4, 0.1, documents)), n * level, n], axis=1)


def test_a_ratio_and_its_error_are_cochrans():
    totals = drawn(30)
    result = ratio(moments(totals), ABOVE, BELOW)
    x, n = totals @ ABOVE, totals @ BELOW
    p = x.sum() / n.sum()
    variance = 30 / 29 * ((x - p * n) ** 2).sum() / n.sum() ** 2
    assert result.value == pytest.approx(p, rel=1e-12)
    assert result.se == pytest.approx(np.sqrt(variance), rel=1e-9)
    half = stats.t.ppf(0.975, 29) * np.sqrt(variance)
    assert (result.low, result.high) == pytest.approx((p - half, p + half), rel=1e-9)


def test_the_error_is_the_bootstraps_over_documents():
    totals, rng = drawn(400), np.random.default_rng(1)
    sums = np.stack([totals[rng.integers(0, 400, 400)].sum(axis=0) for _ in range(2000)])
    assert ratio(moments(totals), ABOVE, BELOW).se == pytest.approx(
        (sums @ ABOVE / (sums @ BELOW)).std(), rel=0.1
    )


def test_intervals_hold_the_truth_as_often_as_they_say():
    truth = 0.4  # rows and losses are drawn apart
    result = [ratio(moments(drawn(25, seed)), ABOVE, BELOW) for seed in range(2, 602)]
    assert 0.92 < np.mean([one.low < truth < one.high for one in result]) < 0.98


def test_moments_of_shards_add_to_those_of_all():
    totals = drawn(60)
    parts = [moments(part) for part in np.array_split(totals, [7, 7, 31])]
    merged = Moments.none(3)
    for part in parts:
        merged = merged.plus(part)
    whole = moments(totals)
    assert merged.documents == 60
    np.testing.assert_allclose(merged.sums, whole.sums, rtol=1e-13)
    np.testing.assert_allclose(merged.products, whole.products, rtol=1e-13)


def test_without_a_positive_denominator_or_a_second_document_nothing_is_claimed():
    none = ratio(moments(drawn(5)), ABOVE, -BELOW)
    assert all(np.isnan(none))
    one = ratio(moments(drawn(1)), ABOVE, BELOW)
    assert one.value > 0
    assert np.isnan([one.se, one.low, one.high]).all()
