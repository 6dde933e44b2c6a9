"""SAELens folders of every architecture, as SAELens saves them while it trains and when it has trained:
features and reconstructions equal those of SAELens' own classes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.saes import load_sae, read_metadata, sae_digest
from schemas.errors import InputError
from tests.kit import write_sae
from tests.saes.parity import assert_equals_module, rows_of
from tests.saes.reference import reference, sae_lens

D_MODEL, D_SAE, D_OUT = 16, 80, 24


def drawn(sae: Any, seed: int = 0) -> Any:
    """The module with every tensor drawn, so that about a tenth of its features fire."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            scale = D_MODEL**-0.5 if name in ("W_enc", "W_skip") else 0.2
            mean = {"threshold": 1.2, "b_enc": 0.0, "b_gate": -1.0}.get(name, 0.0)
            tensor.copy_((mean + scale * values).abs() if name == "threshold" else mean + scale * values)
    return sae


def built(name: str, **options: Any) -> Any:
    """A module of this class of SAELens, drawn."""
    sae_lens()
    package = importlib.import_module("sae_lens.saes")
    config = getattr(package, f"{name}Config")(d_in=D_MODEL, d_sae=D_SAE, **options)
    return drawn(getattr(package, name)(config))


def transcoder(name: str, **options: Any) -> Any:
    return built(name, d_out=D_OUT, apply_b_dec_to_input=False, **options)


@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
@pytest.mark.parametrize("name", ["StandardSAE", "GatedSAE", "JumpReLUSAE", "TopKSAE", "AbsTopKSAE"])
def test_saes_equal_saelens(tmp_path: Path, name: str, apply_b_dec_to_input: bool) -> None:
    options = {"k": 6} if "TopK" in name else {}
    sae = built(name, apply_b_dec_to_input=apply_b_dec_to_input, **options)
    sae.save_model(tmp_path)
    assert_equals_module(load_sae(str(tmp_path)), sae, rows_of(D_MODEL))
    assert_equals_module(load_sae(str(tmp_path / "sae_weights.safetensors")), sae, rows_of(D_MODEL))


@pytest.mark.parametrize("rescaled", [True, False])
@pytest.mark.parametrize("name", ["TopKSAE", "AbsTopKSAE"])
def test_topk_of_rescaled_activations_equals_saelens(tmp_path: Path, name: str, rescaled: bool) -> None:
    sae = built(name, k=6, rescale_acts_by_decoder_norm=rescaled)
    sae.save_model(tmp_path)
    features = assert_equals_module(load_sae(str(tmp_path)), sae, rows_of(D_MODEL))
    assert (features.data < 0).any() == (name == "AbsTopKSAE")


@pytest.mark.parametrize(
    "name", ["Transcoder", "SkipTranscoder", "JumpReLUTranscoder", "JumpReLUSkipTranscoder"]
)
def test_transcoders_equal_saelens(tmp_path: Path, name: str) -> None:
    sae = transcoder(name)
    sae.cfg.metadata.hook_name = "blocks.1.ln2.hook_normalized"
    sae.cfg.metadata.hook_name_out = "blocks.1.hook_mlp_out"
    sae.save_model(tmp_path)
    encoder = load_sae(str(tmp_path))
    assert (encoder.metadata.transcoder, encoder.metadata.width_out) == (True, D_OUT)
    assert encoder.metadata.skip == ("Skip" in name)
    assert encoder.metadata.hook_name_out == "blocks.1.hook_mlp_out"
    features = assert_equals_module(encoder, sae, rows_of(D_MODEL))
    if encoder.metadata.skip:
        with pytest.raises(InputError, match="like=x"):
            encoder.decode(features)


@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale"])
def test_a_transcoder_of_normalised_x_equals_saelens(tmp_path: Path, how: str) -> None:
    sae = transcoder("Transcoder", normalize_activations=how)
    sae.save_model(tmp_path)
    assert_equals_module(load_sae(str(tmp_path)), sae, rows_of(D_MODEL, scale=3) + 1)


def test_an_sae_of_one_head_reads_that_head(tmp_path: Path) -> None:
    folder = write_sae(tmp_path, "topk", D_MODEL, D_SAE, "blocks.0.attn.hook_z", hook_head_index=2)
    encoder = load_sae(str(folder))
    x = rows_of(4 * D_MODEL)
    assert encoder.accepts(4 * D_MODEL)
    assert not encoder.accepts(2 * D_MODEL)
    assert_equals_module(encoder, reference(folder), x, lambda x: x.view(len(x), 4, D_MODEL)[:, 2])


def test_an_sae_of_all_heads_reads_them_flat(tmp_path: Path) -> None:
    sae = built("StandardSAE", reshape_activations="hook_z")
    sae.cfg.metadata.hook_name = "blocks.0.attn.hook_z"
    sae.save_model(tmp_path)
    x = rows_of(D_MODEL)
    features = load_sae(str(tmp_path)).encode(x)
    with torch.no_grad():
        expected = sae.encode(x.view(len(x), 4, -1)).numpy()
    np.testing.assert_allclose(features.data, expected[expected != 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hook_head_index": -1}, "hook_head_index -1; it must be the number of a head"),
        ({"hook_head_index": "2"}, "hook_head_index '2'; it must be"),
    ],
)
def test_a_head_that_is_none_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_metadata(str(write_sae(tmp_path, **changes)))


def batch_topk(matryoshka: bool, rescaled: bool) -> Any:
    """A training of BatchTopK, as it stands after some steps."""
    widths = {"matryoshka_widths": [20, D_SAE]} if matryoshka else {}
    prefix = "MatryoshkaBatchTopK" if matryoshka else "BatchTopK"
    sae = built(f"{prefix}TrainingSAE", k=5.0, rescale_acts_by_decoder_norm=rescaled, **widths)
    sae.topk_threshold.fill_(0.9)
    return sae


@pytest.mark.parametrize("matryoshka", [True, False])
@pytest.mark.parametrize("rescaled", [True, False])
def test_batchtopk_equals_its_inference_form_from_either_folder(
    tmp_path: Path, matryoshka: bool, rescaled: bool
) -> None:
    sae = batch_topk(matryoshka, rescaled)
    sae.save_model(tmp_path / "checkpoint")
    sae.save_inference_model(tmp_path / "final")
    inference = reference(tmp_path / "final")
    checkpoint = load_sae(str(tmp_path / "checkpoint"))
    assert (checkpoint.metadata.architecture, checkpoint.metadata.k) == ("jumprelu", None)
    assert "whatever else is in the batch" in checkpoint.metadata.notes[0]
    assert_equals_module(checkpoint, inference, rows_of(D_MODEL))
    assert_equals_module(load_sae(str(tmp_path / "final")), inference, rows_of(D_MODEL))


def test_a_token_has_the_same_features_alone_and_in_any_batch(tmp_path: Path) -> None:
    batch_topk(False, True).save_model(tmp_path)
    encoder, x = load_sae(str(tmp_path)), rows_of(D_MODEL, 50)
    together = encoder.encode(x)
    for n in range(50):
        alone = encoder.encode(x[n : n + 1])
        inside = slice(together.indptr[n], together.indptr[n + 1])
        np.testing.assert_array_equal(alone.indices, together.indices[inside])
        np.testing.assert_allclose(alone.data, together.data[inside], rtol=1e-5)


@pytest.mark.parametrize("form", ["threshold", "log_threshold"])
def test_a_jumprelu_training_is_read_in_either_form(tmp_path: Path, form: str) -> None:
    sae = built("JumpReLUTrainingSAE")
    sae.save_model(tmp_path)
    if form == "log_threshold":
        file = tmp_path / "sae_weights.safetensors"
        weights = load_file(file)
        weights["log_threshold"] = weights.pop("threshold").log()
        save_file(weights, file)
    (tmp_path / "runner_cfg.json").write_text("{}")
    assert_equals_module(load_sae(str(tmp_path)), sae, rows_of(D_MODEL))


@pytest.mark.parametrize("name", ["StandardTrainingSAE", "GatedTrainingSAE", "TopKTrainingSAE"])
def test_other_trainings_equal_saelens(tmp_path: Path, name: str) -> None:
    sae = built(name, **({"k": 6} if "TopK" in name else {}))
    sae.save_model(tmp_path)
    assert_equals_module(load_sae(str(tmp_path)), sae, rows_of(D_MODEL))


@pytest.mark.parametrize("rescaled", [True, False])
def test_a_checkpoint_with_its_factor_of_x_equals_what_saelens_saves_in_the_end(
    tmp_path: Path, rescaled: bool
) -> None:
    sae = batch_topk(False, rescaled)
    sae.cfg.normalize_activations = "expected_average_only_in"
    sae.save_model(tmp_path / "checkpoint")
    unscaled = sae_digest(str(tmp_path / "checkpoint"))
    scaler = {"scaling_factor": 0.37, "has_whitening": False}
    (tmp_path / "checkpoint" / "activation_scaler.json").write_text(json.dumps(scaler))
    sae.fold_activation_norm_scaling_factor(0.37)
    sae.save_inference_model(tmp_path / "final")
    x = rows_of(D_MODEL, scale=3)
    assert_equals_module(load_sae(str(tmp_path / "checkpoint")), reference(tmp_path / "final"), x)
    assert sae_digest(str(tmp_path / "checkpoint")) != unscaled


@pytest.mark.parametrize(
    ("scaler", "message"),
    [
        ({"has_whitening": True}, "with whitening, which is folded into the weights when the training ends"),
        ({"scaling_factor": 0}, "scaling_factor 0; it must be a number above 0"),
        ({"scaling_factor": "1"}, "scaling_factor '1'; it must be"),
    ],
)
def test_a_checkpoint_that_cannot_be_finished_is_refused(
    tmp_path: Path, scaler: dict[str, Any], message: str
) -> None:
    folder = write_sae(tmp_path)
    (folder / "activation_scaler.json").write_text(json.dumps(scaler))
    with pytest.raises(InputError, match=message):
        load_sae(str(folder))


def test_a_factor_of_finetuning_scales_reconstructions_alone(tmp_path: Path) -> None:
    folder = write_sae(tmp_path, "standard", D_MODEL, D_SAE)
    plain, x = load_sae(str(folder)), rows_of(D_MODEL)
    file = folder / "sae_weights.safetensors"
    factor = 1 + 0.3 * torch.rand(D_SAE, generator=torch.Generator().manual_seed(0))
    save_file(load_file(file) | {"scaling_factor": factor}, file)
    with pytest.raises(InputError, match="does not have finetuning_scaling_factor"):
        load_sae(str(folder))
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"finetuning_scaling_factor": True}))
    scaled = load_sae(str(folder))
    features = scaled.encode(x)
    np.testing.assert_array_equal(features.data, plain.encode(x).data)
    with torch.no_grad():
        sae = reference(write_sae(tmp_path / "plain", "standard", D_MODEL, D_SAE))
        expected = (sae.encode(x) * factor) @ sae.W_dec + sae.b_dec
    np.testing.assert_allclose(scaled.decode(features), expected, rtol=1e-4, atol=1e-5)


def test_thresholds_of_a_bfloat16_sae_keep_their_float32(tmp_path: Path) -> None:
    threshold = (1 + torch.rand(D_SAE, generator=torch.Generator().manual_seed(0)) / 300).numpy()
    folder = write_sae(tmp_path, "jumprelu", D_MODEL, D_SAE, weights={"threshold": threshold})
    file = folder / "sae_weights.safetensors"
    weights = {name: t if name == "threshold" else t.bfloat16() for name, t in load_file(file).items()}
    save_file(weights, file)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    encoder = load_sae(str(folder))
    np.testing.assert_array_equal(encoder.weights()["threshold"], threshold)
    assert "SAELens rounds the thresholds to bfloat16" in encoder.metadata.notes[0]
    x = rows_of(D_MODEL)
    pre = ((x - weights["b_dec"].float()) @ weights["W_enc"].float() + weights["b_enc"].float()).numpy()
    expected = np.where(pre > threshold, pre, 0)
    rounded = pre > torch.from_numpy(threshold).bfloat16().float().numpy()
    assert (rounded != (expected > 0)).any()
    result = np.zeros_like(expected)
    features = encoder.encode(x)
    result[np.repeat(np.arange(len(x)), np.diff(features.indptr)), features.indices] = features.data
    np.testing.assert_array_equal(result > 0, expected > 0)


OLD = {
    "d_in": 16,
    "d_sae": 64,
    "hook_point": "blocks.0.attn.hook_z",
    "hook_point_head_index": None,
    "dtype": "torch.float32",
    "model_name": "gpt2",
    "context_size": 128,
    "dataset_path": "some/corpus",
    "finetuning_scaling_factor": False,
}


@pytest.mark.parametrize("normalised", [False, True, None, "none"])
def test_old_configurations_mean_what_saelens_takes_them_for(tmp_path: Path, normalised: Any) -> None:
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    folder = write_sae(tmp_path, "topk", k=8)
    old = OLD | {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 8}, "device": "cpu"}
    old["normalize_activations"] = normalised
    (folder / "cfg.json").write_text(json.dumps(old))
    expected, result = handle_config_defaulting(dict(old)), read_metadata(str(folder))
    assert (result.architecture, result.k) == (expected["architecture"], expected["k"])
    assert result.normalize_activations == expected["normalize_activations"]
    assert result.apply_b_dec_to_input == expected["apply_b_dec_to_input"]
    about = expected["metadata"]
    assert (result.hook_name, result.prepend_bos) == (about["hook_name"], about["prepend_bos"])
    assert (result.model_name, result.context_size) == (about["model_name"], about["context_size"])
    assert result.extra["dataset_path"] == "some/corpus"


@pytest.mark.parametrize("about", [{}, {"sae_lens_version": "5.9.1"}])
def test_metadata_without_a_version_of_today_make_an_old_configuration(
    tmp_path: Path, about: dict[str, Any]
) -> None:
    folder = write_sae(tmp_path, "topk", D_MODEL, D_SAE, k=8)
    old = OLD | {"d_sae": D_SAE, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}
    old |= {"device": "cpu", "metadata": about}
    (folder / "cfg.json").write_text(json.dumps(old))
    result = read_metadata(str(folder))
    assert (result.architecture, result.k, result.prepend_bos) == ("topk", 5, True)
    assert (result.hook_name, result.context_size) == ("blocks.0.attn.hook_z", 128)
    sae = reference(folder)
    sae.turn_off_forward_pass_hook_z_reshaping()
    assert_equals_module(load_sae(str(folder)), sae, rows_of(D_MODEL))


def test_a_k_among_the_options_of_the_activation_is_found(tmp_path: Path) -> None:
    folder = write_sae(tmp_path, "topk", k=8)
    config, digest = json.loads((folder / "cfg.json").read_text()), sae_digest(str(folder))
    del config["k"]
    config["activation_fn_kwargs"] = {"k": 8}
    (folder / "cfg.json").write_text(json.dumps(config))
    assert sae_digest(str(folder)) == digest
    (folder / "cfg.json").write_text(json.dumps(OLD | {"architecture": "topk", "k": 8}))
    assert sae_digest(str(folder)) == digest


@pytest.mark.parametrize("name", ["StandardSAE", "JumpReLUSAE", "GatedSAE"])
def test_rescaling_that_saelens_ignores_is_ignored(tmp_path: Path, name: str) -> None:
    built(name).save_model(tmp_path)
    digest = sae_digest(str(tmp_path))
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps(config | {"rescale_acts_by_decoder_norm": True}))
    assert sae_digest(str(tmp_path)) == digest
    assert_equals_module(load_sae(str(tmp_path)), reference(tmp_path), rows_of(D_MODEL))


def test_an_activation_that_saelens_would_pass_over_is_refused(tmp_path: Path) -> None:
    folder = write_sae(tmp_path)
    (folder / "cfg.json").write_text(json.dumps(OLD | {"activation_fn_str": "tanh-relu"}))
    with pytest.raises(InputError, match="architecture 'standard with tanh-relu'; known"):
        read_metadata(str(folder))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("matching_pursuit", "saelens:PATH reads it through the sae-lens package"),
        ("temporal", "a temporal SAE attends over its context"),
        (["topk"], "known: standard"),
    ],
)
def test_what_has_no_rule_is_refused_with_the_way_out(
    tmp_path: Path, architecture: Any, message: str
) -> None:
    folder = write_sae(tmp_path)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"architecture": architecture}))
    with pytest.raises(InputError, match=message):
        read_metadata(str(folder))


def test_one_threshold_of_a_wrong_shape_is_named(tmp_path: Path) -> None:
    batch_topk(False, True).save_model(tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    save_file(load_file(file) | {"topk_threshold": torch.zeros(3)}, file)
    with pytest.raises(InputError, match=r"topk_threshold .* has shape \[3\]; it must be one number or 80"):
        load_sae(str(tmp_path))
