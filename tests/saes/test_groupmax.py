"""GroupMax selects exactly: against a loop over the groups, with ties, and groups that lie in two blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.saes.encoding.groupmax import GroupMaxRule
from schemas.errors import InputError
from schemas.values import SparseFeatures
from tests.saes.selecting import Dense, select, select_on_device


def rule_of(width: int, k: int) -> GroupMaxRule:
    return GroupMaxRule(torch.zeros(width), k)


def brute_force(dense: Dense, k: int) -> list[list[int]]:
    size = dense.shape[1] // k
    best = [[g * size + int(np.argmax(row[g * size : (g + 1) * size])) for g in range(k)] for row in dense]
    return [[f for f in chosen if row[f] > 0] for chosen, row in zip(best, dense, strict=True)]


def chosen(features: SparseFeatures) -> list[list[int]]:
    return [part.tolist() for part in np.split(features.indices, features.indptr[1:-1])]


def assert_selects_as_brute_force(dense: Dense, k: int) -> None:
    rule, expected = rule_of(dense.shape[1], k), brute_force(dense, k)
    ways = [select(rule, dense, block) for block in (None, 64, 7, 1)]
    ways += [select_on_device(rule, dense, capacity) for capacity in (256, 1)]
    for result in ways:
        assert chosen(result) == expected
        rows = np.repeat(np.arange(len(dense)), np.diff(result.indptr))
        np.testing.assert_array_equal(result.data, dense[rows, result.indices])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(1, 30),
    st.integers(1, 12),
    st.sampled_from([1, 3, 50, 10**6]),
)
def test_selection_equals_a_loop_over_the_groups(
    seed: int, rows: int, size: int, k: int, levels: int
) -> None:
    rng = np.random.default_rng(seed)
    dense = (rng.integers(-levels, levels + 1, (rows, size * k)) / 7).astype(np.float32)
    assert_selects_as_brute_force(dense, k)


def test_equal_values_go_to_the_lowest_feature_of_their_group() -> None:
    dense = np.ones((3, 12), dtype=np.float32)
    assert chosen(select(rule_of(12, 3), dense)) == [[0, 4, 8]] * 3
    assert_selects_as_brute_force(dense, 3)


def test_a_group_without_a_positive_value_is_silent() -> None:
    dense = np.array([[-1, -2, 0, -0.0, 3, 1], [-1, -1, -1, -1, -1, -1]], dtype=np.float32)
    assert chosen(select(rule_of(6, 3), dense)) == [[4], []]
    assert_selects_as_brute_force(dense, 3)


def test_the_largest_of_a_group_in_two_blocks_may_lie_in_either() -> None:
    dense = np.array([[1, 2, 9, 3, 4, 5, 6, 7], [1, 2, 3, 9, 8, 5, 6, 7]], dtype=np.float32)
    for block in (1, 2, 3, 5):
        assert chosen(select(rule_of(8, 2), dense, block)) == [[2, 7], [3, 4]]


@pytest.mark.parametrize("k", [1, 12])
def test_one_group_and_groups_of_one_are_limits_that_hold(k: int) -> None:
    dense = np.random.default_rng(0).standard_normal((20, 12)).astype(np.float32)
    assert_selects_as_brute_force(dense, k)


def test_no_rows_give_no_features() -> None:
    result = select(rule_of(8, 2), np.empty((0, 8), np.float32))
    assert result.indptr.tolist() == [0]
    assert result.nnz == 0


def test_groups_of_uneven_size_are_refused() -> None:
    with pytest.raises(InputError, match="64 features cannot have k 7"):
        rule_of(64, 7)
