"""TopK selects exactly: against a stable sort, with ties, short rows and every k."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.saes.encoding.rule import GROUP, keys_of
from pipeline.saes.encoding.topk import RunningBound, TopKRule
from schemas.values import SparseFeatures
from tests.saes.selecting import Dense, select, select_on_device


def rule_of(width: int, k: int, signed: bool = False) -> TopKRule:
    return TopKRule(torch.zeros(width), k, signed=signed)


def brute_force(key: Dense, k: int) -> list[list[int]]:
    order = np.argsort(-key, axis=1, kind="stable")[:, :k]
    return [sorted(f for f in chosen if row[f] > 0) for chosen, row in zip(order, key, strict=True)]


def chosen(features: SparseFeatures) -> list[list[int]]:
    return [part.tolist() for part in np.split(features.indices, features.indptr[1:-1])]


def assert_selects_as_brute_force(dense: Dense, k: int) -> None:
    for signed in (False, True):
        rule = rule_of(dense.shape[1], k, signed)
        expected = brute_force(np.abs(dense) if signed else dense, k)
        ways = [select(rule, dense, block) for block in (None, 64, 7)]
        ways += [select_on_device(rule, dense, capacity) for capacity in (256, 1)]
        for result in ways:
            assert chosen(result) == expected
            rows = np.repeat(np.arange(len(dense)), np.diff(result.indptr))
            np.testing.assert_array_equal(result.data, dense[rows, result.indices])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(1, 300),
    st.integers(1, 40),
    st.sampled_from([1, 3, 50, 10**6]),
)
def test_selection_equals_a_stable_sort(seed: int, rows: int, width: int, k: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    dense = (rng.integers(-levels, levels + 1, (rows, width)) / 7).astype(np.float32)
    assert_selects_as_brute_force(dense, k)


@pytest.mark.parametrize("width", [64, GROUP * 40, GROUP * 40 + 5])
def test_equal_values_go_to_the_lowest_features(width: int) -> None:
    dense = np.ones((3, width), dtype=np.float32)
    assert chosen(select(rule_of(width, 5), dense)) == [[0, 1, 2, 3, 4]] * 3
    assert_selects_as_brute_force(dense, 5)


def test_a_tie_at_the_kth_value_keeps_the_larger_ones() -> None:
    dense = np.array([[1, 3, 1, 2, 1, 0, 1]], dtype=np.float32)
    assert chosen(select(rule_of(7, 4), dense)) == [[0, 1, 2, 3]]


def test_rows_with_fewer_positives_than_k_keep_just_those() -> None:
    dense = np.array([[-1, 2, 0, -0.0, 1], [-1, -2, -3, -4, -5]], dtype=np.float32)
    assert chosen(select(rule_of(5, 3), dense)) == [[1, 4], []]
    assert_selects_as_brute_force(dense, 3)


def test_k_above_the_number_of_features_keeps_all_positives() -> None:
    dense = np.array([[1, -1, 2]], dtype=np.float32)
    assert_selects_as_brute_force(dense, 10)


@pytest.mark.parametrize("width", [512, 1000, 4608])
def test_the_lower_bound_is_below_the_kth_value_and_close_to_it(width: int) -> None:
    dense = np.random.default_rng(0).standard_normal((50, width)).astype(np.float32)
    kth = np.sort(dense, axis=1)[:, -8]
    bound = RunningBound(8)(keys_of(torch.from_numpy(dense), slice(0, width), signed=False))
    assert (bound[:, 0] <= kth).all()
    assert (dense >= bound).sum(axis=1).mean() < 16
