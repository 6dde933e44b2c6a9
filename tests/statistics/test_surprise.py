"""Surprise against a count of every row."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.statistics.evaluation.surprise import Stored, at_least, surprise_bits
from pipeline.statistics.features.histogram import bins_of

ROWS = 10_000


def stored(values: np.ndarray) -> Stored:
    bins, counts = np.unique(bins_of(values), return_counts=True)
    low, high = (float(f(values)) if len(values) else -s for f, s in ((np.min, -np.inf), (np.max, np.inf)))
    return Stored(bins, counts.astype(np.int64), low, high)


def as_large(values: np.ndarray, x: np.float32) -> int:
    return int((values >= x).sum() if x > 0 else (values <= x).sum())


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    rng = np.random.default_rng(3)
    drawn = rng.lognormal(0, 1.5, 700) * rng.choice([1, 1, -1], 700)
    return drawn.astype(np.float16).astype(np.float32)


def test_a_count_errs_by_less_than_its_bin(values: np.ndarray) -> None:
    requested = np.concatenate([values, values * np.float32(1.01)])
    result = at_least(stored(values), requested)
    for x, n in zip(requested, result, strict=True):
        in_bin = (bins_of(values) == bins_of(np.array([x]))).sum()
        assert abs(n - as_large(values, x)) <= in_bin


def test_a_count_is_exact_at_the_edges_of_bins(values: np.ndarray) -> None:
    edges = np.float32([0.5, 0.5625, 1, 4, -0.5, -2])
    result = at_least(stored(values), edges)
    np.testing.assert_allclose(result, [as_large(values, x) for x in edges], rtol=1e-15)


def test_what_was_never_seen_has_log2_of_all_rows_and_the_strongest_one_row_more(values: np.ndarray) -> None:
    beyond = np.float32([values.max() * 1.001, values.max(), values.min() * 1.001, values.min()])
    assert at_least(stored(values), beyond).tolist() == [0, 1, 0, 1]
    bits = surprise_bits(stored(values), beyond, ROWS)
    expected = [np.log2(ROWS + 1), np.log2((ROWS + 1) / 2)] * 2
    np.testing.assert_allclose(bits, expected, rtol=1e-15)


def test_a_feature_that_never_fired_is_as_surprising_as_can_be() -> None:
    nothing = Stored(np.empty(0, np.int16), np.empty(0, np.int64), np.inf, -np.inf)
    assert surprise_bits(nothing, np.float32([0.1, -3]), ROWS).tolist() == [np.log2(ROWS + 1)] * 2


def test_stronger_is_never_less_surprising(values: np.ndarray) -> None:
    for sign in (1, -1):
        rising = sign * np.float32(np.geomspace(1e-3, 1e3, 5000))
        assert (np.diff(surprise_bits(stored(values), rising, ROWS)) >= 0).all()
