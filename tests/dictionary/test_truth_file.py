"""The file of the truth, for us and for anybody."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats

from pipeline.synthetic.dictionary.generator import NumpyDictionary, all_blocks
from pipeline.synthetic.dictionary.truth import (
    KnownTruth,
    above_zero,
    both_below,
    read_truth,
    truth_of,
    write_truth,
)
from schemas.errors import InputError
from schemas.run.dictionary_corpus import Dictionary
from tests.dictionary.test_generator import recipe


def test_it_can_be_read_again_and_holds_what_follows_for_anybody(tmp_path):
    truth = truth_of(NumpyDictionary(recipe()))
    path = tmp_path / "truth.npz"
    write_truth(truth, path.write_bytes)
    again = read_truth(path)
    assert again.recipe == truth.recipe
    np.testing.assert_array_equal(again.vectors, truth.vectors)
    np.testing.assert_array_equal(again.bias, truth.bias)
    np.testing.assert_array_equal(again.first, next(all_blocks(NumpyDictionary(recipe()))).x[:2048])
    plain = np.load(path)
    np.testing.assert_array_equal(plain["frequency"], truth.frequency)
    np.testing.assert_array_equal(plain["correlated"], [[0, 1], [2, 3], [2, 4], [3, 4], [5, 6]])
    np.testing.assert_array_equal(plain["parents"], [[11, 10], [12, 10]])
    np.testing.assert_array_equal(plain["exclusive"], [[13, 14]])


@pytest.mark.parametrize("correlation", [-0.95, -0.3, 0.0, 0.6, 0.999])
def test_how_often_two_correlated_numbers_are_both_below_is_what_scipy_integrates(correlation):
    quantiles = np.array([-4.0, -1.2, 0.0, 0.3, 2.5])
    h, k = (grid.ravel() for grid in np.meshgrid(quantiles, quantiles))
    cov = [[1.0, correlation], [correlation, 1.0]]
    expected = [stats.multivariate_normal.cdf(pair, mean=[0, 0], cov=cov) for pair in zip(h, k, strict=True)]
    np.testing.assert_allclose(both_below(h, k, correlation), expected, atol=1e-9)


def test_the_pairs_of_a_large_group_are_known_at_once():
    """A group of 1,000 has half a million pairs; SciPy's integral took a minute and a half for them."""
    group = {"features": list(range(1000)), "correlation": 0.4}
    requested = Dictionary.model_validate(
        {
            "features": 1000,
            "width": 2,
            "correlated": [group],
            "probability": {"first": 0.5, "last": 0.01},
            "magnitude_std": 0.5,
        }
    )
    began = time.process_time()
    truth = KnownTruth(requested, np.zeros((1000, 2), np.float32), np.zeros(2, np.float32))
    assert truth.correlated.frequency.shape == (1000 * 999 // 2,)
    assert time.process_time() - began < 10
    np.testing.assert_array_equal(truth.correlated.features[[0, -1]], [[0, 1], [998, 999]])


def test_values_without_spread_are_their_mean_and_none_of_mean_0_is_above_0():
    chance, value = above_zero(np.array([2.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0]))
    np.testing.assert_array_equal(chance, [1.0, 0.0, 0.5])
    np.testing.assert_allclose(value, [2.0, np.nan, np.sqrt(2 / np.pi)])


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_another_file_is_refused_with_what_writes_one(tmp_path, content):
    path = tmp_path / "truth.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"truth\.npz.*make-dictionary"):
        read_truth(path)


def test_a_file_that_was_cut_and_an_array_of_numpy_are_refused(tmp_path):
    path = tmp_path / "truth.npz"
    write_truth(truth_of(NumpyDictionary(recipe())), path.write_bytes)
    whole = path.read_bytes()
    np.save(tmp_path / "one.npy", np.zeros(3))
    for content in (whole[:100], whole[: len(whole) // 2], whole[:-30], (tmp_path / "one.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=r"truth\.npz is not the ground truth of a dictionary .*make-dictionary"
        ):
            read_truth(path)


def test_a_file_of_before_first_rows_were_kept_is_read(tmp_path):
    path = tmp_path / "truth.npz"
    truth = truth_of(NumpyDictionary(recipe()))
    write_truth(truth, path.write_bytes)
    with np.load(path) as result:
        np.savez(path, **{name: result[name] for name in result if name != "first"})
    again = read_truth(path)
    assert len(again.first) == 0
    np.testing.assert_array_equal(again.vectors, truth.vectors)


def test_an_archive_of_other_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "truth.npz", vectors=np.zeros(3))
    with pytest.raises(InputError, match="is not the ground truth of a dictionary"):
        read_truth(tmp_path / "truth.npz")
