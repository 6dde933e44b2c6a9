"""The file of the truth, for us and for anybody."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.dictionary.generator import NumpyDictionary
from pipeline.dictionary.truth import above_zero, read_truth, truth_of, write_truth
from schemas.errors import InputError
from tests.dictionary.test_generator import recipe


def test_it_can_be_read_again_and_holds_what_follows_for_anybody(tmp_path):
    truth = truth_of(NumpyDictionary(recipe()))
    path = tmp_path / "truth.npz"
    write_truth(truth, path.write_bytes)
    again = read_truth(path)
    assert again.recipe == truth.recipe
    np.testing.assert_array_equal(again.vectors, truth.vectors)
    np.testing.assert_array_equal(again.bias, truth.bias)
    plain = np.load(path)
    np.testing.assert_array_equal(plain["frequency"], truth.frequency)
    np.testing.assert_array_equal(plain["correlated"], [[0, 1], [2, 3], [2, 4], [3, 4], [5, 6]])
    np.testing.assert_array_equal(plain["parents"], [[11, 10], [12, 10]])
    np.testing.assert_array_equal(plain["exclusive"], [[13, 14]])


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


def test_an_archive_of_other_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "truth.npz", vectors=np.zeros(3))
    with pytest.raises(InputError, match="is no truth of a dictionary"):
        read_truth(tmp_path / "truth.npz")
