"""Candidates of a block: found by the groups' maxima where they are few, else everywhere, and the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.saes.encoding import rule
from pipeline.saes.encoding.rule import GROUP, _in_few_groups, candidates, group_maxima, hstack_csr, keys_of
from schemas.values import SparseFeatures

Dense = np.ndarray[Any, np.dtype[np.float32]]


def chosen(dense: Dense, limit: Dense, first: int = 0, signed: bool = False) -> SparseFeatures:
    product = torch.from_numpy(dense)
    keys = keys_of(product, slice(first, first + dense.shape[1]), signed=signed)
    return candidates(product, keys, limit, np.empty(dense.shape, dtype=np.bool_))


def by_groups(dense: Dense, limit: Dense) -> list[int] | None:
    result = _in_few_groups(keys_of(torch.from_numpy(dense), slice(0, dense.shape[1]), signed=False), limit)
    return None if result is None else result.tolist()


def sparse_block(seed: int, rows: int, groups: int) -> Dense:
    """Unit normal values; about one in 200 is above 2.5."""
    values = np.random.default_rng(seed).standard_normal((rows, groups * GROUP))
    return (np.round(values * 64) / 64).astype(np.float32)  # coarse, so that some equal a limit


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 12), st.booleans(), st.booleans())
def test_candidates_are_all_that_reach_the_limit(
    seed: int, rows: int, groups: int, by_row: bool, signed: bool
) -> None:
    dense = sparse_block(seed, rows, groups)
    shape = (rows, 1) if by_row else (groups * GROUP,)
    limit = (np.random.default_rng(seed + 1).integers(128, 192, shape) / 64).astype(np.float32)
    result = chosen(dense, limit, first=7, signed=signed)
    expected = np.argwhere((np.abs(dense) if signed else dense) >= limit)
    row_of = np.repeat(np.arange(rows), np.diff(result.indptr))
    np.testing.assert_array_equal(np.stack([row_of, result.indices - 7], axis=1), expected)
    np.testing.assert_array_equal(result.data, dense[tuple(expected.T)])


@pytest.mark.parametrize("by_row", [True, False])
def test_few_candidates_are_found_by_their_groups_and_many_are_not(by_row: bool) -> None:
    dense = sparse_block(0, 64, 8)
    shape = (64, 1) if by_row else (128,)
    high, low = np.full(shape, 3.0, np.float32), np.full(shape, 0.5, np.float32)
    assert by_groups(dense, high) == np.flatnonzero(dense >= 3).tolist() != []
    assert by_groups(dense, low) is None
    assert chosen(dense, low).nnz == np.count_nonzero(dense >= 0.5)


@pytest.mark.parametrize(("width", "limit_width"), [(40, 1), (48, 48)])
def test_a_ragged_block_and_a_limit_for_every_value_are_looked_at_everywhere(
    width: int, limit_width: int
) -> None:
    dense = np.zeros((5, width), np.float32)
    dense[2, width - 1] = 9
    limit = np.full((5, limit_width), 1, np.float32)
    assert by_groups(dense, limit) is None
    assert (chosen(dense, limit).indptr.tolist(), chosen(dense, limit).indices.tolist()) == (
        [0, 0, 0, 1, 1, 1],
        [width - 1],
    )


def test_a_group_is_every_gth_column() -> None:
    values = torch.arange(2 * 3 * GROUP + 2, dtype=torch.float32)[None].repeat(1, 1)
    maxima = group_maxima(values, GROUP)
    groups = values.shape[1] // GROUP
    assert maxima.tolist() == [[float(groups * (GROUP - 1) + g) for g in range(groups)]]


def test_limits_of_infinity_let_nothing_or_everything_through() -> None:
    dense = sparse_block(3, 4, 2)
    assert chosen(dense, np.full(32, np.inf, np.float32)).nnz == 0
    assert chosen(dense, np.full(32, -np.inf, np.float32)).nnz == dense.size


def test_neighbouring_blocks_are_put_next_to_each_other_row_by_row() -> None:
    dense = sparse_block(1, 30, 6)
    limit = np.full((30, 1), 1.5, np.float32)
    parts = [chosen(np.ascontiguousarray(dense[:, a:b]), limit, a) for a, b in ((0, 32), (32, 33), (33, 96))]
    together, whole = hstack_csr(parts), chosen(dense, limit)
    for name in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(getattr(together, name), getattr(whole, name))
        assert getattr(together, name).dtype == getattr(whole, name).dtype


def test_the_share_of_groups_decides_and_not_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, limit = sparse_block(2, 50, 10), np.full(160, 2.0, np.float32)
    expected = chosen(dense, limit)
    for share in (-1.0, 1.0):
        monkeypatch.setattr(rule, "FEW", share)
        np.testing.assert_array_equal(chosen(dense, limit).indices, expected.indices)
