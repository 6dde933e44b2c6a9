"""An SAE as a whole, against sae-lens' own evaluation of the same arrays."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from jobs.studies.known.matching import assigned, cosines_with, mcc, uniqueness
from jobs.studies.known.summary import detection
from tests.saes.reference import sae_lens

ROWS, S, F, D = 300, 14, 10, 12


def evals() -> Any:
    sae_lens()
    return importlib.import_module("sae_lens.synthetic.evals")


@pytest.fixture(scope="module")
def made():
    """Activations of an SAE and of the truth, directions of both; some of all of them are zero."""
    rng = np.random.default_rng(5)
    true = rng.standard_normal((F, D)).astype(np.float32)
    drawn = np.where(rng.random((ROWS, F)) < 0.3, rng.uniform(0.5, 2, (ROWS, F)), 0).astype(np.float32)
    decoder = (true[rng.integers(0, F, S)] + 0.4 * rng.standard_normal((S, D))).astype(np.float32)
    result = np.where(rng.random((ROWS, S)) < 0.3, rng.normal(0, 1, (ROWS, S)), 0).astype(np.float32)
    decoder[3] = 0
    result[:, [3, 5]] = 0  # never fire
    drawn[:, np.abs(cosines_with(decoder, true))[7].argmax()] = 0
    return true, drawn, decoder, result


def test_detection_of_nearest_true_features_is_that_of_sae_lens(made):
    import torch

    true, drawn, decoder, result = made
    nearest = np.abs(cosines_with(decoder, true)).argmax(axis=1)
    active, fires = result != 0, drawn[:, nearest] > 0
    ours = detection(active.sum(0), fires.sum(0), (active & fires).sum(0), ROWS)
    theirs = evals().compute_classification_metrics(*map(torch.from_numpy, (result, drawn, decoder, true)))
    assert 0 < ours["f1"] < ours["accuracy"] < 1
    for name, message in (("precision",) * 2, ("recall",) * 2, ("f1", "f1_score"), ("accuracy",) * 2):
        assert abs(ours[name] - getattr(theirs, message)) < 1e-6


@pytest.mark.parametrize(
    "of", [slice(None), slice(0, 6), slice(3, 4)]
)  # more, fewer, and one without direction
def test_mcc_and_uniqueness_are_those_of_sae_lens(made, of):
    import torch

    true, _, decoder, _ = made
    cosines = cosines_with(decoder[of], true)
    both = torch.from_numpy(decoder[of]), torch.from_numpy(true)
    assert abs(mcc(cosines, assigned(cosines)) - evals().mean_correlation_coefficient(*both)) < 1e-6
    assert abs(uniqueness(cosines) - evals().feature_uniqueness(*both)) < 1e-6
