"""Known dictionaries drawn by sae-lens, against the same closed form as ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from pipeline.synthetic.dictionary.generator import NumpyDictionary, all_blocks
from pipeline.synthetic.dictionary.truth import truth_of
from schemas.errors import InputError
from tests.dictionary.test_generator import recipe

pytestmark = pytest.mark.slow  # importing sae-lens takes longer than all of it


@pytest.fixture(scope="module")
def made():
    from pipeline.sources.generated.saelens_dictionary import SaelensDictionary

    return SaelensDictionary(recipe(generator="saelens", documents=2000))


def test_it_fires_as_our_closed_form_says(made):
    truth, values = truth_of(made), sparse.vstack([block.values for block in all_blocks(made)])
    fires = (values > 0).astype(np.int64)
    measured = (fires.T @ fires).toarray() / values.shape[0]
    both = np.array([[truth.both(a, b) for b in range(24)] for a in range(24)])
    np.fill_diagonal(both, truth.frequency)
    certain = both > 0
    assert (measured[~certain] == 0).all()
    z = (measured - both)[certain] / np.sqrt(both * (1 - both) / values.shape[0])[certain]
    assert np.abs(z).max() < 4.5
    means = np.asarray(values.sum(axis=0)).ravel() / fires.sum(axis=0)
    assert (np.abs(means - truth.mean_active) < 4.5 * 0.5 / np.sqrt(np.asarray(fires.sum(axis=0)))).all()


def test_directions_requested_are_ours_and_others_nearly_orthogonal(made):
    np.testing.assert_array_equal(made.vectors, NumpyDictionary(recipe()).vectors)
    requested = recipe(generator="saelens", features=40, cosine=None, correlated=[], trees=[])
    theirs = type(made)(requested).vectors
    cosines = theirs @ theirs.T - np.eye(40)
    assert np.abs(cosines.diagonal()).max() < 1e-5
    ours = NumpyDictionary(requested).vectors
    assert np.square(cosines).mean() < np.square(ours @ ours.T - np.eye(40)).mean() / 2


def test_a_block_is_the_same_again_and_leaves_torchs_numbers_alone(made):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = made.block(0), made.block(0), made.block(1)
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(first.x, again.x)
    assert (first.values != other.values).nnz


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"trees": [{"exclusive": True, "children": [{"feature": 10}, {"children": [{"feature": 11}]}]}]},
            "exclusive and has a child without a feature",
        ),
        ({"features": 5000, "width": 5000, "cosine": None}, "a matrix of 5,000 squared entries"),
    ],
)
def test_what_sae_lens_does_otherwise_is_refused(made, changes, message):
    with pytest.raises(InputError, match=message):
        type(made)(recipe(generator="saelens", **changes))
