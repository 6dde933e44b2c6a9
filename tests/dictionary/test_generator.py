"""Rows of a known dictionary against its closed form."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import sparse, stats

from pipeline.synthetic.dictionary.generator import (
    DICTIONARY,
    NumpyDictionary,
    all_blocks,
    documents_of_block,
    rng_of,
)
from pipeline.synthetic.dictionary.truth import truth_of
from pipeline.synthetic.dictionary.vectors import directions, gram
from schemas.errors import InputError
from schemas.run.dictionary_corpus import Dictionary

ASKED = {
    "features": 24,
    "width": 32,
    "documents": 4000,
    "rows": 16,
    "probability": {"first": 0.3, "last": 0.02},
    "magnitude": {"first": 1.0, "last": 4.0},
    "magnitude_std": 0.5,
    "cosine": 0.0,
    "correlated": [
        {"features": [0, 1], "correlation": 0.8},
        {"features": [2, 3, 4], "correlation": 0.5},
        {"features": [5, 6], "correlation": -0.6},
    ],
    "trees": [
        {"feature": 10, "children": [{"feature": 11}, {"feature": 12}]},
        {"exclusive": True, "children": [{"feature": 13}, {"feature": 14}]},
    ],
    "noise": 0.1,
    "bias": 2.0,
}


def recipe(**changes) -> Dictionary:
    return Dictionary.model_validate(ASKED | changes)


def drawn(made: NumpyDictionary) -> tuple[sparse.csr_matrix, np.ndarray]:
    blocks = list(all_blocks(made))
    return sparse.vstack([b.values for b in blocks]).tocsr(), np.concatenate([b.x for b in blocks])


@pytest.fixture(scope="module")
def rows():
    made = NumpyDictionary(recipe())
    return made, truth_of(made), *drawn(made)


def test_features_fire_alone_and_together_as_often_as_the_closed_form_says(rows):
    _, truth, values, _ = rows
    fires = (values > 0).astype(np.int64)
    measured = (fires.T @ fires).toarray() / values.shape[0]
    both = np.array(
        [[truth.both(a, b) if a != b else truth.frequency[a] for b in range(24)] for a in range(24)]
    )
    z = (measured - both) / np.sqrt(np.maximum(both * (1 - both), 1e-300) / values.shape[0])
    certain = both > 0
    assert (measured[~certain] == 0).all()
    assert np.abs(z[certain]).max() < 4.5
    assert 0.85 < z[certain].std() < 1.15


def test_values_have_the_mean_of_a_normal_number_cut_at_0(rows):
    _, truth, values, _ = rows
    mean, std = np.geomspace(1, 4, 24), 0.5
    np.testing.assert_allclose(
        truth.mean_active, stats.truncnorm.mean(-mean / std, np.inf, mean, std), rtol=1e-9
    )
    for feature in range(24):
        result = values[:, [feature]].data
        assert (result > 0).all()
        assert abs(result.mean() - truth.mean_active[feature]) < 4.5 * result.std() / len(result) ** 0.5


def test_a_vector_is_the_sum_of_values_times_directions_and_bias_and_noise(rows):
    made, _, values, x = rows
    rest = x - (values.toarray().astype(np.float64) @ made.vectors.astype(np.float64) + made.bias)
    assert x.dtype == np.float32
    assert abs(rest.std() - 0.1) < 5 * 0.1 / (2 * rest.size) ** 0.5
    assert abs(rest.mean()) < 5 * 0.1 / rest.size**0.5
    assert abs(np.linalg.norm(made.bias) - 2.0) < 1e-5


def test_the_mean_next_to_a_feature_is_that_of_the_rows_in_which_it_fires(rows):
    _, truth, values, _ = rows
    for feature in (0, 3, 5, 10, 11, 13, 20):
        others = values[values[:, [feature]].nonzero()[0]].toarray()
        error = others.std(axis=0) / len(others) ** 0.5
        assert (np.abs(others.mean(axis=0) - truth.means_when_active(feature)) <= 5 * error + 1e-6).all()


def test_a_document_depends_on_the_recipe_and_its_number_alone():
    requested = {"rows": 300, "features": 700, "width": 8, "cosine": None, "correlated": [], "trees": []}
    few, many = (NumpyDictionary(recipe(documents=n, **requested)) for n in (15, 31))
    assert documents_of_block(few.recipe) == 9
    values, x = drawn(few)
    more_values, more_x = drawn(many)
    assert x.shape == (15 * 300, 8)
    np.testing.assert_array_equal(x, more_x[: len(x)])
    assert (values != more_values[: len(x)]).nnz == 0
    block = many.block(1)
    np.testing.assert_array_equal(block.x, more_x[block.first : block.first + 9 * 300])
    assert (drawn(NumpyDictionary(recipe(documents=15, seed=1, **requested)))[1] != x).any()


@pytest.mark.parametrize(
    ("cosine", "cosines", "width"), [(0.0, [], 24), (0.3, [], 40), (None, [(0, 1, 0.9), (4, 2, -0.5)], 24)]
)
def test_directions_have_the_cosines_requested(cosine, cosines, width):
    pairs = [{"features": [a, b], "cosine": c} for a, b, c in cosines]
    requested = recipe(cosine=cosine, cosines=pairs, width=width)
    vectors = NumpyDictionary(requested).vectors.astype(np.float64)
    expected = np.full((24, 24), cosine or 0.0)
    np.fill_diagonal(expected, 1)
    for a, b, c in cosines:
        expected[a, b] = expected[b, a] = c
    np.testing.assert_array_equal(gram(requested), expected)
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-6)


def test_more_directions_than_entries_are_possible_where_their_cosines_allow_it():
    requested = recipe(features=3, width=2, cosine=-0.5, correlated=[], trees=[])
    vectors = NumpyDictionary(requested).vectors
    np.testing.assert_allclose(vectors @ vectors.T, gram(requested), atol=1e-6)


def test_directions_are_in_space_of_as_many_dimensions_as_their_cosines_need():
    """Features 1 and 2 are in the plane of 0 and 3; one that lies in the middle of others takes no entry."""
    pairs = [((0, 1), 0.8), ((0, 2), 0.6), ((1, 2), 0.96), ((1, 3), 0.6), ((2, 3), 0.8)]
    cosines = [{"features": list(pair), "cosine": value} for pair, value in pairs]
    vectors = directions(plain(features=4, width=2, cosines=cosines), np.random.default_rng(0))
    expected = [[1, 0.8, 0.6, 0], [0.8, 1, 0.96, 0.6], [0.6, 0.96, 1, 0.8], [0, 0.6, 0.8, 1]]
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-6)


def plain(**changes) -> Dictionary:
    return Dictionary.model_validate({"features": 24, "width": 32} | changes)


DRAW = """
import sys
import numpy as np
from pipeline.synthetic.dictionary.generator import NumpyDictionary
from schemas.run.dictionary_corpus import Dictionary
def drawn(cosine, **more):
    recipe = Dictionary.model_validate({"features": 300, "width": 320, "cosine": cosine} | more)
    return NumpyDictionary(recipe).vectors
np.save(sys.argv[1], [drawn(0.0), drawn(0.3), drawn(-1 / 299)])
"""


def test_another_machine_draws_the_same_dictionary(tmp_path):
    """Equal eigenvalues leave the choice of a basis to threads and kernels of BLAS."""
    started = {}
    for threads, kind in (("1", "Haswell"), ("2", "Sandybridge")):
        env = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "OPENBLAS_CORETYPE": kind}
        path = tmp_path / f"{kind}.npy"
        started[path] = subprocess.Popen([sys.executable, "-c", DRAW, str(path)], env=os.environ | env)
    assert [process.wait() for process in started.values()] == [0, 0]
    result = [np.load(path) for path in started]
    np.testing.assert_allclose(result[0], result[1], atol=1e-6)


def test_directions_at_right_angles_are_those_of_stores_made_before():
    """The rows of Q of the random numbers drawn first, which is what their eigenvectors gave too."""
    made = NumpyDictionary(plain(cosine=0.0))
    rows = rng_of(made.recipe, DICTIONARY).standard_normal((32, 24))
    np.testing.assert_allclose(made.vectors, np.linalg.qr(rows)[0].T, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 23}, "24 directions of these cosines need 24 entries, width is 23"),
        ({"cosine": -0.5}, "no directions have all of these cosines"),
    ],
)
def test_cosines_that_no_directions_have_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        NumpyDictionary(recipe(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probability": [0.1, 0.2]}, "probability has 2 numbers for 24 features"),
        ({"probability": 1.0}, "must lie between 0 and 1"),
        ({"magnitude": -1}, "must lie between 0 and 1,000,000"),
        ({"correlated": [{"features": [0, 0], "correlation": 0.1}]}, "names a feature twice"),
        ({"correlated": [{"features": [0, 1, 2], "correlation": -0.5}]}, "it must be above -0.5"),
        (
            {"correlated": [{"features": [0, n], "correlation": 0.5} for n in (1, 2)]},
            "0 is in several groups",
        ),
        (
            {"correlated": [{"features": [0, 24], "correlation": 0.5}]},
            "names feature 24; features are numbered 0 to 23",
        ),
        ({"cosines": [{"features": [3, 3], "cosine": 0.5}]}, "a feature and itself"),
    ],
)
def test_a_wrong_recipe_is_refused_in_a_sentence(changes, message):
    with pytest.raises(ValidationError, match=message):
        recipe(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": 65536, "width": 16, "rows": 65536}, "rows is 65,536: a document would have more than"),
        ({"features": 2, "width": 65536, "rows": 4096}, "rows is 4,096: a document would have more than"),
        (
            {"features": 8193, "width": 9000, "cosine": 0.1},
            "has 8,193 features, but cosines can be set for at most 8,192",
        ),
        (
            {"features": 8193, "width": 9000, "cosines": [{"features": [0, 1], "cosine": 0.1}]},
            "has 8,193 features, but cosines can be set for at most 8,192",
        ),
        (
            {"features": 3000, "correlated": [{"features": list(range(3000)), "correlation": 0.1}]},
            "has 4,498,500 pairs of features, more than 2,097,152",
        ),
        ({"magnitude": [1.0, 0, 2] + [1.0] * 21}, "feature 1 has magnitude 0 and magnitude_std 0"),
        ({"magnitude": 0}, "feature 0 has magnitude 0 and magnitude_std 0"),
    ],
)
def test_what_no_memory_holds_and_what_never_fires_is_refused_before_anything_is_drawn(changes, message):
    with pytest.raises(ValidationError, match=message):
        plain(**changes)


def test_a_mean_of_0_with_a_spread_fires_and_so_does_a_spread_of_0_with_a_mean():
    made = plain(magnitude=[0.0] * 12 + [1.0] * 12, magnitude_std=[1.0] * 12 + [0.0] * 12)
    assert (truth_of(NumpyDictionary(made)).mean_active > 0).all()


def test_right_angles_of_more_features_than_entries_are_refused_before_a_matrix_is_made():
    with pytest.raises(InputError, match="65536 directions of these cosines need 65536 entries, width is 64"):
        directions(plain(features=65536, width=64, cosine=0.0), np.random.default_rng(0))


def test_many_features_in_groups_are_checked_in_no_time():
    groups = [{"features": [n, n + 1], "correlation": 0.3} for n in range(0, 20_000, 2)]
    began = time.process_time()
    plain(features=20_000, correlated=groups)
    assert time.process_time() - began < 3
