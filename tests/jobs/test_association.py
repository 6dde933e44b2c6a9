"""Measures of association against other people's code on the 0 and 1 themselves."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import jaccard_score, matthews_corrcoef, mutual_info_score

from jobs.tables.pairs.association import MEASURES, PairCounts, conditional, highest, jaccard, npmi, phi

ROWS = 400


@pytest.fixture(scope="module")
def active():
    """Features [rows, 6]: two that go together, a rare one, the first's opposite, a dense one, an eternal."""
    rng = np.random.default_rng(0)
    x = rng.random((ROWS, 6)) < [0.3, 0.3, 0.02, 0, 0.9, 1]
    x[:, 1] |= x[:, 0] & (rng.random(ROWS) < 0.8)
    x[:, 2] &= x[:, 0]
    x[:, 3] = ~x[:, 0]
    x[0, :5] = True
    return x


def counts(active, a, b):
    x, y = active[:, a], active[:, b]
    return PairCounts(np.array([(x & y).sum()]), np.array([x.sum()]), np.array([y.sum()]), ROWS)


PAIRS = [(a, b) for a in range(6) for b in range(6) if a != b]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_each_measure_is_what_others_compute_from_the_rows(active, a, b):
    of, x, y = counts(active, a, b), active[:, a], active[:, b]
    assert jaccard(of)[0] == pytest.approx(jaccard_score(x, y), rel=1e-14)
    assert conditional(of)[0] == pytest.approx(y[x].mean(), rel=1e-14)
    if 5 not in (a, b):
        assert phi(of)[0] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-14)
        assert phi(of)[0] == pytest.approx(matthews_corrcoef(x, y), abs=1e-14)
    p_x, p_y, p_both = x.mean(), y.mean(), (x & y).mean()
    assert npmi(of)[0] == pytest.approx(np.log(p_both / (p_x * p_y)) / -np.log(p_both), abs=1e-14)


def test_npmi_terms_add_up_to_the_mutual_information(active):
    x, y = active[:, 0], active[:, 1]
    total = 0.0
    for u in (x, ~x):
        for v in (y, ~y):
            of = PairCounts(np.array([(u & v).sum()]), np.array([u.sum()]), np.array([v.sum()]), ROWS)
            p_both = (u & v).mean()
            total += p_both * npmi(of)[0] * -np.log(p_both)
    assert total == pytest.approx(mutual_info_score(x, y), rel=1e-12)


def test_what_is_undefined_is_not_a_number():
    always = PairCounts(np.array([ROWS, 7]), ROWS, np.array([ROWS, 7]), ROWS)
    assert np.isnan(phi(always)).all()
    assert np.isnan(npmi(always)).tolist() == [True, False]
    assert npmi(always)[1] == 0
    assert jaccard(always).tolist() == [1, 7 / ROWS]


def test_equal_features_score_one_and_opposite_ones_least():
    same = PairCounts(np.array([5]), 5, np.array([5]), ROWS)
    assert [measure(same)[0] for measure in MEASURES.values()] == pytest.approx([1, 1, 1, 1], abs=1e-15)
    nearly_opposite = PairCounts(np.array([1]), 200, np.array([201]), ROWS)
    assert phi(nearly_opposite)[0] < -0.98
    assert npmi(nearly_opposite)[0] < -0.7


def test_counts_of_a_trillion_rows_do_not_overflow():
    rows = 10**12
    of = PairCounts(np.array([2 * 10**11]), 4 * 10**11, np.array([5 * 10**11]), rows)
    assert phi(of)[0] == pytest.approx(0, abs=1e-15)
    assert npmi(of)[0] == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_the_highest_are_by_sign_ties_in_order_and_nan_never(k):
    values = np.array([0.5, -2, 0.5, np.nan, 3, 0.5, -2, 0])
    assert highest(values, k).tolist() == [4, 0, 2, 5, 7, 1, 6][:k]
    assert highest(np.full(3, np.nan), k).tolist() == []
