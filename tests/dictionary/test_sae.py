"""The SAE made of a dictionary: what sae-lens reads and makes itself, and what it finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.saes import load_sae
from pipeline.synthetic.dictionary.generator import NumpyDictionary
from pipeline.synthetic.dictionary.sae import SaeOptions, order_of, weights_of, write_dictionary_sae
from pipeline.synthetic.dictionary.truth import KnownTruth, truth_of
from tests.dictionary.test_generator import recipe
from tests.fixtures.store import to_dense
from tests.saes.parity import assert_equals_module
from tests.saes.reference import reference, sae_lens


@pytest.fixture(scope="module")
def made():
    return NumpyDictionary(recipe(noise=0.0, documents=50, magnitude_std=0.05))


@pytest.mark.slow  # importing sae-lens
@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_sae_lens_and_we_read_it_alike(tmp_path, made, threshold):
    write_dictionary_sae(tmp_path / "sae", truth_of(made), SaeOptions(noise=0.05, threshold=threshold))
    encoder = load_sae(str(tmp_path / "sae"), "cpu", "float32")
    assert encoder.metadata.hook_name == "input"
    assert_equals_module(encoder, reference(tmp_path / "sae"), torch.from_numpy(made.block(0).x[:200]))


def test_without_noise_it_finds_exactly_what_fires_and_its_values(tmp_path, made):
    like = SaeOptions(seed=3)
    write_dictionary_sae(tmp_path / "sae", truth_of(made), like)
    block = made.block(0)
    result = to_dense(load_sae(str(tmp_path / "sae"), "cpu", "float32").encode(torch.from_numpy(block.x)), 24)
    expected = block.values.toarray()[:, order_of(like, 24)]
    np.testing.assert_array_equal(result > 0, expected > 0)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_weights_are_those_that_sae_lens_makes_of_the_same_dictionary(made):
    truth = truth_of(made)
    sae_lens()
    from sae_lens.synthetic import FeatureDictionary, init_sae_to_match_feature_dict

    class Sae(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W_enc = torch.nn.Parameter(torch.zeros(32, 24))
            self.W_dec = torch.nn.Parameter(torch.zeros(24, 32))

    sae, theirs = Sae(), FeatureDictionary(24, 32, initializer=None)
    theirs.feature_vectors.data = torch.from_numpy(truth.vectors)
    init_sae_to_match_feature_dict(sae, theirs)
    ours = weights_of(truth, SaeOptions(shuffled=False))
    np.testing.assert_array_equal(ours["W_enc"], sae.W_enc.detach().numpy())
    np.testing.assert_array_equal(ours["W_dec"], sae.W_dec.detach().numpy())


def test_noise_is_in_encoder_and_decoder_and_of_the_size_requested(made):
    truth = truth_of(made)
    like = SaeOptions(noise=0.1, shuffled=True, seed=1)
    weights = weights_of(truth, like)
    np.testing.assert_array_equal(weights["W_enc"], weights["W_dec"].T)
    noise = weights["W_dec"] - truth.vectors[order_of(like, 24)]
    assert abs(noise.std() - 0.1) < 5 * 0.1 / (2 * noise.size) ** 0.5
    assert sorted(order_of(like, 24).tolist()) == list(range(24))
    np.testing.assert_allclose(weights["threshold"], 0.5 * truth.mean_active[order_of(like, 24)], rtol=1e-6)


def test_the_same_seed_makes_the_same_weights_and_another_others(made):
    truth: KnownTruth = truth_of(made)
    first, same, other = (weights_of(truth, SaeOptions(noise=0.1, seed=seed)) for seed in (0, 0, 1))
    assert (first["W_dec"] == same["W_dec"]).all()
    assert (first["W_dec"] != other["W_dec"]).any()
