"""Pooling of rows against a loop over groups and features."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from pipeline.statistics.pooling import POOLINGS, pool_entries, pool_rows

GROUPS = 9
EMPTY = 4
"""A group of no row."""


def made(seed=0):
    """Activations of both signs, dense [70, 6], two thirds of them 0; rows of a group are not neighbours."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(size=(70, 6)).astype(np.float16).astype(np.float32)
    dense[rng.random(dense.shape) < 0.66] = 0
    dense[:, 2] = 0
    group = rng.choice(np.delete(np.arange(GROUPS), EMPTY), 70)
    return dense, group


def looped(dense, group, pooling):
    pooled = np.zeros((GROUPS, dense.shape[1]), np.float32)
    for number in set(group.tolist()):
        for feature in range(dense.shape[1]):
            values = [
                float(value) for value, own in zip(dense[:, feature], group, strict=True) if own == number
            ]
            pooled[number, feature] = {
                "sum": sum(values),
                "mean": sum(values) / len(values),
                "max": max(values, key=lambda value: (abs(value), value)),
                "last": values[-1],
            }[pooling]
    return pooled


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("seed", range(3))
def test_pooled_rows_are_those_of_a_loop_to_the_bit(pooling, seed):
    dense, group = made(seed)
    pooled = pool_rows(sparse.csr_matrix(dense), group, GROUPS, pooling)
    assert pooled.dtype == np.float32
    np.testing.assert_array_equal(pooled.toarray(), looped(dense, group, pooling))
    assert not pooled[EMPTY].nnz


def test_the_last_row_counts_though_nothing_is_active_in_it():
    matrix = sparse.csr_matrix(np.array([[1, 2], [3, 0], [0, 0], [0, 5]], np.float32))
    assert pool_rows(matrix, np.array([0, 0, 0, 1]), 2, "last").toarray().tolist() == [[0, 0], [0, 5]]


def test_a_mean_may_be_over_more_rows_than_are_given():
    matrix = sparse.csr_matrix(np.array([[3, 0], [0, 6]], np.float32))
    pooled = pool_rows(matrix, np.array([0, 1]), 2, "mean", np.array([2, 3]))
    assert pooled.toarray().tolist() == [[1.5, 0], [0, 2]]


def test_the_strongest_keeps_its_sign_and_a_tie_is_the_positive_one():
    matrix = sparse.csr_matrix(np.array([[1, -3, 2], [-2, 1, -2], [0, 0, 5]], np.float32))
    pooled = pool_rows(matrix, np.array([0, 0, 1]), 2, "max")
    assert pooled.toarray().tolist() == [[-2, -3, 2], [0, 0, 5]]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_nothing_active_gives_nothing(pooling):
    pooled = pool_rows(sparse.csr_matrix((4, 3), dtype=np.float32), np.zeros(4, int), 1, pooling)
    assert (pooled.shape, pooled.nnz) == ((1, 3), 0)
    none = np.empty(0, np.int64)
    result = pool_entries(none, none, np.empty(0, np.float32), pooling, np.array([4]))
    assert [len(part) for part in result] == [0, 0, 0]


def test_sums_are_those_of_float64():
    values = np.array([2**24, 1, 1, 1, 1], np.float32)
    pooled = pool_rows(sparse.csr_matrix(values[:, None]), np.zeros(5, int), 1, "sum")
    assert pooled.toarray()[0, 0] == 2**24 + 4
