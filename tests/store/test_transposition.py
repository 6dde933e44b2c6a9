"""Rounding is reported, and both layouts hold the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.store.formats.transposition import round_activations, to_features, to_postings
from schemas.errors import ShardError
from schemas.values import SparseFeatures
from tests.fixtures.store import random_features, to_dense


def features(rows: list[dict[int, float]]) -> SparseFeatures:
    lengths = [len(row) for row in rows]
    items = [item for row in rows for item in sorted(row.items())]
    return SparseFeatures(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array([feature for feature, _ in items], dtype=np.int32),
        np.array([value for _, value in items], dtype=np.float32),
    )


def test_rounding_to_float16_equals_numpy_and_reports_the_largest_relative_change() -> None:
    given_features = features([{0: 1.0001, 3: 2.5}, {1: -0.3333}])
    rounded, underflow, loss = round_activations(given_features, "float16")
    assert rounded.data.dtype == np.float32
    assert rounded.data.tolist() == np.float32(np.float16([1.0001, 2.5, -0.3333])).tolist()
    assert underflow == 0
    change = abs(float(np.float16(-0.3333)) + 0.3333) / 0.3333
    assert loss == pytest.approx(max(change, 0.0001 / 1.0001), rel=1e-3)


def test_float32_is_kept_to_the_bit() -> None:
    value = np.float32(1.2345678)
    rounded, underflow, loss = round_activations(features([{5: float(value)}]), "float32")
    assert (rounded.data[0], underflow, loss) == (value, 0, 0.0)


def test_what_underflows_is_counted_and_dropped_from_its_row() -> None:
    rounded, underflow, _ = round_activations(
        features([{0: 1e-9, 2: 4.0}, {}, {1: 0.0, 4: -1e-9, 7: 1.0}]), "float16"
    )
    assert underflow == 2  # the stored zero was zero before
    assert rounded.indptr.tolist() == [0, 1, 1, 2]
    assert rounded.indices.tolist() == [2, 7]
    assert rounded.data.tolist() == [4.0, 1.0]


def test_overflow_names_the_feature_and_the_remedy() -> None:
    with pytest.raises(
        ShardError, match=r"70000 of feature 12 \(row 1 .*float16: set store.activation_dtype: float32"
    ):
        round_activations(features([{3: 1.0}, {12: 70000.0}]), "float16")
    assert round_activations(features([{12: 70000.0}]), "float32")[0].data[0] == 70000


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(ShardError, match=r"feature 2 \(row 0 of the shard\) is (nan|inf)"):
        round_activations(features([{2: value}]), "float32")


@given(st.integers(0, 2**32 - 1), st.integers(0, 30))
def test_postings_equal_the_dense_matrix_read_by_columns(seed: int, n_rows: int) -> None:
    rng = np.random.default_rng(seed)
    given_features = random_features(rng, rng.random(n_rows) < 0.7)
    dense = to_dense(given_features)
    postings = to_postings(given_features, dense.shape[1])
    assert postings.features.tolist() == np.flatnonzero((dense != 0).any(axis=0)).tolist()
    assert postings.rows.dtype == postings.offsets.dtype == np.int64
    for i, feature in enumerate(postings.features):
        place = slice(postings.offsets[i], postings.offsets[i + 1])
        rows = np.flatnonzero(dense[:, feature])
        assert postings.rows[place].tolist() == rows.tolist()
        assert postings.values[place].tolist() == dense[rows, feature].tolist()
    back = to_features(postings, n_rows, dense.shape[1])
    for name in ("indptr", "indices", "data"):
        assert np.array_equal(getattr(back, name), getattr(given_features, name))


def test_rows_and_features_beyond_65535_keep_their_numbers() -> None:
    rows: list[dict[int, float]] = [{} for _ in range(70_000)]
    rows[69_999] = {99_999: 2.0, 65_536: 1.0}
    postings = to_postings(features(rows), 100_000)
    assert postings.features.tolist() == [65_536, 99_999]
    assert postings.rows.tolist() == [69_999, 69_999]
