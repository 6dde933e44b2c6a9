"""A mistake of every kind is made with an SAE that explains its data; the diagnosis names that one.

The SAE: a dictionary of two orthonormal bases as far apart as can be (64 directions in 32 dimensions),
x = sparse codes @ dictionary + mean. A code is one or two values between 10 and 20, so that a threshold of
7.5 separates them from interference.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from pipeline.saes import load_sae
from pipeline.saes.quality.alternatives import Rows, best_factor, mean_norm_factor, measured
from pipeline.saes.quality.diagnosis import CLEARLY, EXPLAINS, Finding, OtherRows, _verdict, diagnose
from pipeline.saes.quality.reconstruction import FEW
from tests.kit import write_sae

D, F, N, THRESHOLD = 32, 64, 1500, 7.5
TURN = np.linalg.qr(np.random.default_rng(1).standard_normal((D, D)))[0]
DICTIONARY = (np.concatenate([np.eye(D), hadamard(D) / D**0.5]) @ TURN).astype(np.float32)
MEAN = (6 * np.random.default_rng(3).standard_normal(D)).astype(np.float32)


def codes(active=None, n=N, seed=4):
    """Codes [n, F] with so many values in a row, one or two by default."""
    rng = np.random.default_rng(seed)
    active = rng.integers(1, 3, (n, 1)) if active is None else active
    result = rng.uniform(10, 20, (n, F))
    rank = np.argsort(np.argsort(rng.random((n, F)), axis=1), axis=1)
    return np.where(rank < active, result, 0).astype(np.float32)


X = codes() @ DICTIONARY + MEAN
THREE = codes(3) @ DICTIONARY + MEAN
S = D**0.5 / np.linalg.norm(X, axis=1).mean()


def weights(architecture="jumprelu", **changes):
    result = {"W_enc": DICTIONARY.T, "W_dec": DICTIONARY, "b_dec": MEAN, "b_enc": np.zeros(F, np.float32)}
    if architecture == "jumprelu":
        result["threshold"] = np.full(F, THRESHOLD, np.float32)
    return result | {name: np.asarray(array, np.float32) for name, array in changes.items()}


def load(folder, architecture="jumprelu", changes=None, **config):
    arrays = weights(architecture, **(changes or {}))
    return load_sae(str(write_sae(folder, architecture, D, F, weights=arrays, **config)))


def both(x, target=None):
    x = torch.from_numpy(np.ascontiguousarray(x, np.float32))
    return Rows(x, x if target is None else torch.from_numpy(np.ascontiguousarray(target, np.float32)))


def assert_named(result, name):
    """The mistake is named, with its own numbers, and the numbers say so."""
    assert result.likely is not None, result.verdict
    assert result.likely.name == name, result.verdict
    assert not result.is_fine
    assert result.likely.unexplained < CLEARLY * result.as_loaded.unexplained
    assert result.likely.change in result.verdict
    for finding in (result.as_loaded, result.likely):
        assert f"L0 {finding.l0:.1f} on {finding.n:,} rows" in result.verdict


def test_an_sae_without_mistakes_is_fine_as_loaded(tmp_path):
    result = diagnose(load(tmp_path), both(X))
    assert result.is_fine, result.verdict
    assert result.likely is None
    assert result.as_loaded.explained_variance > 0.9
    assert result.as_loaded.l0 == pytest.approx(1.5, rel=0.1)
    assert re.fullmatch(
        r"As loaded the SAE explains the data: explained variance 0\.9\d+, L0 1\.\d on 1,500 rows; no "
        r"alternative explains clearly more\.",
        result.verdict,
    )


@pytest.mark.parametrize("rows", [X[: FEW - 1], X[:1], X[:0], np.repeat(X[:1], 2 * FEW, axis=0)])
def test_too_few_rows_and_rows_that_do_not_vary_accuse_nobody(tmp_path, rows):
    result = diagnose(load(tmp_path, changes=MISTAKES["W_enc on another scale"]), both(rows))
    assert not result.is_measurable
    assert result.likely is None
    assert result.is_fine
    assert re.match(r"There are too few tokens to tell \(.* rows\): give more --tokens\.$", result.verdict)


def test_enough_rows_tell_and_few_rows_from_elsewhere_accuse_nobody(tmp_path):
    encoder = load(tmp_path, changes=MISTAKES["W_enc on another scale"])
    assert_named(diagnose(encoder, both(X[:FEW])), "W_enc on another scale")
    strange = np.random.default_rng(9).standard_normal((N, D))
    elsewhere = [OtherRows("there", "read there", both(X[: FEW - 1]))]
    assert diagnose(load(tmp_path / "fine"), both(strange), elsewhere).likely is None


NORMS = np.exp(np.random.default_rng(5).normal(0, 1, F)).astype(np.float32)
MISTAKES = {
    "normalisation missing": {"W_enc": DICTIONARY.T / S, "W_dec": DICTIONARY * S, "b_dec": MEAN * S},
    "normalisation applied twice": {"W_enc": DICTIONARY.T * S, "W_dec": DICTIONARY / S, "b_dec": MEAN / S},
    "reconstruction not scaled back": {"W_dec": DICTIONARY * S, "b_dec": MEAN * S, "b_enc": 0 * NORMS},
    "threshold is a logarithm": {"threshold": np.log(np.full(F, THRESHOLD))},
    "exp() was applied twice to the threshold": {"threshold": np.exp(np.full(F, THRESHOLD))},
    "threshold on the scale of normalised x": {"threshold": np.full(F, THRESHOLD * S)},
    "threshold on the scale of raw x": {"threshold": np.full(F, THRESHOLD / S)},
    "W_dec with unit rows": {"W_dec": DICTIONARY * NORMS[:, None]},
    "W_enc on another scale": {"W_enc": DICTIONARY.T * 2.5},
    "x on another scale": {"W_enc": DICTIONARY.T * 3, "W_dec": DICTIONARY / 3, "b_dec": MEAN / 3},
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_weights_is_named(tmp_path, name):
    assert_named(diagnose(load(tmp_path, changes=MISTAKES[name]), both(X)), name)


def test_a_factor_of_the_decoder_is_named_where_its_rows_have_no_length_1(tmp_path):
    arrays = {
        "W_enc": DICTIONARY.T / NORMS,
        "W_dec": DICTIONARY * NORMS[:, None],
        "threshold": THRESHOLD / NORMS,
    }
    assert diagnose(load(tmp_path / "whole", changes=arrays), both(X)).is_fine
    broken = arrays | {"W_dec": arrays["W_dec"] * 0.4}
    result = diagnose(load(tmp_path / "broken", changes=broken), both(X))
    assert_named(result, "W_dec on another scale")
    factor = re.search(r"W_dec must be multiplied by about ([0-9.]+)\. ", result.verdict)
    assert float(factor[1]) == pytest.approx(2.5, rel=0.04)


def test_b_dec_that_is_not_subtracted(tmp_path):
    result = diagnose(load(tmp_path, apply_b_dec_to_input=False), both(X))
    assert_named(result, "b_dec subtracted from x")
    assert "apply_b_dec_to_input to true" in result.verdict


def test_b_dec_that_is_subtracted_twice(tmp_path):
    folded = {"b_enc": -MEAN @ DICTIONARY.T}
    assert diagnose(load(tmp_path / "no", changes=folded, apply_b_dec_to_input=False), both(X)).is_fine
    assert_named(diagnose(load(tmp_path / "yes", changes=folded), both(X)), "b_dec not subtracted from x")


def layer_normed():
    """X whose rows have any mean and length, and is X's like once these are gone."""
    rng = np.random.default_rng(6)
    plain = (X - X.mean(axis=1, keepdims=True)) / X.std(axis=1, keepdims=True, ddof=1)
    return plain, plain * np.exp(rng.normal(0, 1.5, (N, 1))) + rng.normal(0, 5, (N, 1))


def test_a_layer_norm_that_is_missing_and_one_that_is_not_wanted(tmp_path):
    plain, x = layer_normed()
    unit = X.std(axis=1, ddof=1).mean()
    arrays = {"b_dec": plain.mean(axis=0), "threshold": np.full(F, THRESHOLD / unit)}
    wanted = diagnose(load(tmp_path / "with", changes=arrays, normalize_activations="layer_norm"), both(x))
    assert wanted.is_fine, wanted.verdict
    missing = diagnose(load(tmp_path / "without", changes=arrays), both(x))
    assert_named(missing, "normalisation layer_norm")
    unwanted = diagnose(load(tmp_path / "unwanted", normalize_activations="layer_norm"), both(X))
    assert_named(unwanted, "normalisation none")


def test_topk_loaded_as_relu_takes_the_k_of_the_files(tmp_path):
    result = diagnose(load(tmp_path, "standard", training_architecture_details={"k": 3}), both(THREE))
    assert_named(result, "TopK, k 3")
    assert result.likely.l0 == pytest.approx(3, abs=0.01)


def test_topk_loaded_as_relu_finds_a_power_of_two_without_one(tmp_path):
    result = diagnose(load(tmp_path, "standard"), both(codes(4) @ DICTIONARY + MEAN))
    assert_named(result, "TopK, best k 4")


def test_relu_loaded_as_topk(tmp_path):
    one_basis = codes(8) * (np.arange(F) < D)
    only = (np.arange(F) < D).astype(np.float32)
    arrays = {"W_enc": DICTIONARY.T * only, "W_dec": DICTIONARY * only[:, None], "b_enc": np.full(F, -0.5)}
    x = one_basis @ DICTIONARY + MEAN
    assert diagnose(load(tmp_path / "relu", "standard", arrays), both(x)).is_fine
    assert_named(diagnose(load(tmp_path / "topk", "topk", arrays, k=1), both(x)), "ReLU")


def test_a_topk_sae_whose_decoder_norms_were_to_be_folded_in(tmp_path):
    arrays = {"W_enc": DICTIONARY.T / NORMS, "W_dec": DICTIONARY * NORMS[:, None]}
    fine = load(tmp_path / "fine", "topk", arrays, k=3, rescale_acts_by_decoder_norm=True)
    assert diagnose(fine, both(THREE)).is_fine
    result = diagnose(load(tmp_path / "not", "topk", arrays, k=3), both(THREE))
    assert_named(result, "decoder norms folded in")


def test_a_threshold_that_was_bfloat16_in_training(tmp_path):
    # bfloat16 has 12 and 12.0625, and nothing between them; 0 and 1 it holds exactly
    x = 12.01 * np.eye(D)[np.random.default_rng(0).integers(0, D, N)]
    one = np.eye(D, F)
    arrays = {"W_enc": one, "W_dec": one.T, "b_dec": np.zeros(D), "threshold": np.full(F, 12.02)}
    result = diagnose(load(tmp_path, changes=arrays), both(x))
    assert result.as_loaded.l0 == 0
    assert_named(result, "weights rounded to bfloat16")


def test_the_hook_is_another_layers(tmp_path):
    other = codes(seed=7) @ np.linalg.qr(np.random.default_rng(8).standard_normal((D, D)))[0][:1].repeat(F, 0)
    places = [
        OtherRows("blocks.1.hook", "read blocks.1.hook", both(other * 2)),
        OtherRows("blocks.3.hook", "read blocks.3.hook", both(X)),
    ]
    result = diagnose(load(tmp_path), both(other), places)
    assert_named(result, "blocks.3.hook")
    assert result.likely.change == "read blocks.3.hook"


def test_rows_of_bos_that_dominate_the_error(tmp_path):
    first = np.zeros(N, dtype=bool)
    first[::15] = True  # too many to be left out as massive rows
    x = np.where(first[:, None], 400 * np.ones(D), X)
    places = [OtherRows("position 0 left out", "leave position 0 out", both(x[~first]))]
    assert_named(diagnose(load(tmp_path), both(x), places), "position 0 left out")


def test_an_sae_of_another_model_explains_nothing_whatever_is_changed(tmp_path):
    rng = np.random.default_rng(9)
    strange = {"W_enc": rng.standard_normal((D, F)), "W_dec": rng.standard_normal((F, D))}
    result = diagnose(load(tmp_path, changes=strange), both(X))
    assert result.likely is None
    assert not result.is_fine
    assert "no alternative explains the data" in result.verdict
    assert all(finding.explained_variance < EXPLAINS for finding in result.tried)


def test_a_transcoder_is_measured_against_its_target(tmp_path):
    turned = np.linalg.qr(np.random.default_rng(10).standard_normal((D, D)))[0]
    target = (codes() @ DICTIONARY @ turned * 5).astype(np.float32)
    s_out = D**0.5 / np.linalg.norm(target, axis=1).mean()
    b_enc = -MEAN @ DICTIONARY.T
    fine = {"W_dec": DICTIONARY @ turned * 5, "b_dec": np.zeros(D), "b_enc": b_enc}
    missing = fine | {"W_enc": DICTIONARY.T / S, "W_dec": fine["W_dec"] * s_out}
    rows = both(X, target)
    assert diagnose(load_transcoder(tmp_path / "fine", fine), rows).is_fine
    result = diagnose(load_transcoder(tmp_path / "missing", missing), rows)
    assert_named(result, "normalisation missing")


def load_transcoder(folder, changes):
    arrays = weights("jumprelu", **changes)
    write_sae(folder, "jumprelu", D, F, weights=arrays, apply_b_dec_to_input=False)
    path = folder / "cfg.json"
    text = path.read_text().replace('"architecture": "jumprelu"', '"architecture": "jumprelu_transcoder"')
    path.write_text(text.replace('"d_in"', f'"d_out": {D}, "d_in"'))
    return load_sae(str(folder))


@pytest.mark.parametrize("architecture", ["gated", "abstopk", "topk", "standard"])
def test_every_architecture_can_be_diagnosed_and_stays_as_it_is(tmp_path, architecture):
    encoder = load_sae(str(write_sae(tmp_path, architecture, D, F)))
    before = {name: array.copy() for name, array in encoder.weights().items()}
    metadata = encoder.metadata
    result = diagnose(encoder, both(X), observe=(seen := []).append)
    assert tuple(seen) == result.tried
    assert encoder.metadata == metadata
    assert all((array == before[name]).all() for name, array in encoder.weights().items())


def test_thinned_rows_are_evenly_spaced():
    rows = both(np.arange(10.0)[:, None])
    assert rows.thinned(4).x[:, 0].tolist() == [0, 2, 5, 7]
    assert rows.thinned(10) == rows


def test_the_factor_of_the_mean_norm():
    assert mean_norm_factor(torch.from_numpy(X)) == pytest.approx(S, rel=1e-6)
    assert mean_norm_factor(torch.zeros(2, 3)) == 1


@pytest.mark.parametrize("best", [0.01, 0.3, 1.0, 1.04, 80.0])
def test_the_best_factor_is_found_within_three_percent(best):
    result = best_factor(lambda c: -abs(np.log(c / best)), wide=True)
    assert abs(result / best - 1) < 0.03


def test_a_factor_of_a_flat_score_is_1():
    assert best_factor(lambda c: 0.0, wide=True) == 1


@pytest.mark.parametrize(("published", "fine"), [({32}, False), ({32, 100}, True), (set(), True)])
def test_many_more_features_than_the_files_name_are_a_mistake_whatever_they_explain(published, fine):
    loaded = Finding("as loaded", "", 1_000, 167.7, 0.85)
    verdict, is_fine = _verdict(loaded, [], None, published)
    assert is_fine == fine
    assert ("Too many features fire: explained variance 0.850, L0 167.7" in verdict) != fine


def with_sinks(x, share=0.0056, factor=200):
    """The rows with a few attention sinks among them: all of one direction, and very long."""
    sinks = np.random.default_rng(6).random(len(x)) < share
    assert sinks.sum() > 3
    return np.where(sinks[:, None], factor * np.abs(MEAN), x)


def test_a_good_sae_is_fine_though_a_few_massive_rows_are_most_of_the_variance(tmp_path):
    encoder, x = load(tmp_path), with_sinks(X)
    assert measured(encoder, both(x)).explained_variance < 0.5
    result = diagnose(encoder, both(x))
    assert result.is_fine, result.verdict
    assert result.as_loaded.explained_variance > 0.9
    assert result.as_loaded.n == measured(encoder, both(x)).rest.n < N


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_on_the_rows_that_are_not_massive(tmp_path, name):
    assert_named(diagnose(load(tmp_path, changes=MISTAKES[name]), both(with_sinks(X))), name)


def test_rows_from_elsewhere_are_without_their_massive_ones_too(tmp_path):
    strange = np.random.default_rng(9).standard_normal((N, D))
    elsewhere = [OtherRows("hook there", "read x there", both(with_sinks(X)))]
    assert_named(diagnose(load(tmp_path), both(strange), elsewhere), "hook there")
