"""Counts of features by token, against counting one by one, and entropies against SciPy's."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from pipeline.statistics.profile import tallies
from pipeline.statistics.profile.tallies import Tally


@pytest.mark.parametrize("waiting", [1, 50, 1 << 20])
def test_counts_and_what_they_say_are_those_of_counting_one_by_one(
    waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "_WAITING", waiting)
    rng = np.random.default_rng(0)
    tally, pairs = Tally(), Counter[tuple[int, int]]()
    for size in (300, 0, 7, 200):
        features, tokens = rng.integers(2, 9, size), rng.geometric(0.2, size) * 70_000
        tally.add(features, tokens)
        pairs.update(zip(features.tolist(), tokens.tolist(), strict=True))
    assert list(zip(*(column.tolist() for column in tally.counts()), strict=True)) == [
        (*pair, count) for pair, count in sorted(pairs.items())
    ]
    concentration, below = tally.concentration(12), tally.below(140_001, 12)
    for feature in range(12):
        counts = {token: count for (f, token), count in pairs.items() if f == feature}
        assert concentration.distinct[feature] == len(counts)
        assert below[feature] == sum(count for token, count in counts.items() if token < 140_001)
        if not counts:
            assert (concentration.top_count[feature], concentration.entropy_bits[feature]) == (0, 0)
            continue
        top = min(counts, key=lambda token: (-counts[token], token))
        assert (concentration.top[feature], concentration.top_count[feature]) == (top, counts[top])
        expected = stats.entropy(list(counts.values()), base=2)
        assert concentration.entropy_bits[feature] == pytest.approx(expected, abs=1e-12)


def test_of_equal_counts_the_lowest_token_is_named_and_one_token_has_no_entropy() -> None:
    tally = Tally()
    tally.add(np.array([0, 0, 0, 0, 1, 1]), np.array([9, 5, 9, 5, 3, 3]))
    concentration = tally.concentration(2)
    assert concentration.top.tolist() == [5, 3]
    assert concentration.entropy_bits.tolist() == [1.0, 0.0]
    assert not np.signbit(concentration.entropy_bits).any()


@pytest.mark.parametrize("waiting", [1, 7, 1 << 20])
def test_sums_are_added_one_by_one_in_the_order_of_the_values(
    waiting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tallies, "_WAITING", waiting)
    rng = np.random.default_rng(1)
    tally, sums = Tally(sums=True), dict[tuple[int, int], float]()
    for size in (30, 0, 100, 1, 60):
        features, tokens = rng.integers(0, 3, size), rng.integers(0, 4, size)
        values = (rng.normal(size=size) * 10.0 ** rng.integers(-8, 8, size)).astype(np.float32)
        tally.add(features, tokens, values)
        for *pair, value in zip(features.tolist(), tokens.tolist(), values.tolist(), strict=True):
            sums[pair[0], pair[1]] = sums.get((pair[0], pair[1]), 0.0) + value
    keys = list(zip(*(column.tolist() for column in tally.counts()[:2]), strict=True))
    assert dict(zip(keys, tally.sums().tolist(), strict=True)) == sums


def test_a_tally_of_nothing() -> None:
    assert Tally(sums=True).sums().tolist() == []
    assert Tally().concentration(3).distinct.tolist() == [0, 0, 0]
