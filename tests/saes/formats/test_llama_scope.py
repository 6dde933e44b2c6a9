"""Llama Scope: its authors' formula, by brute force and by their own class, and how SAELens' differs."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.saes import load_sae, read_metadata, sae_digest
from schemas.errors import InputError
from tests.fixtures.store import to_dense
from tests.saes.golden.check import DATA, assert_equals_golden
from tests.saes.reference import sae_lens

CASES = ("res", "transcoder")


def copy(folder: Path, case: str = "res", **changes: Any) -> Path:
    shutil.copytree(DATA / f"llama_scope-{case}", folder)
    config = json.loads((folder / "hyperparams.json").read_text()) | changes
    (folder / "hyperparams.json").write_text(json.dumps(config))
    return folder


def test_saes_equal_their_authors_class() -> None:
    encoder = assert_equals_golden(DATA / "llama_scope-res")
    assert encoder.metadata.hook_name == "blocks.8.hook_resid_post"
    assert not encoder.metadata.transcoder
    weights = DATA / "llama_scope-res" / "checkpoints" / "final.safetensors"
    assert_equals_golden(DATA / "llama_scope-res", str(weights))


def test_transcoders_equal_their_authors_class() -> None:
    metadata = assert_equals_golden(DATA / "llama_scope-transcoder").metadata
    assert (metadata.transcoder, metadata.d_out) == (True, 16)
    assert metadata.hook_name == "blocks.8.ln2.hook_normalized"
    assert metadata.hook_name_out == "blocks.8.hook_mlp_out"


def brute_force(folder: Path, x: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Activations and reconstruction by the formula, step by step, in float64."""
    config = json.loads((folder / "hyperparams.json").read_text())
    stored = load_file(folder / "checkpoints" / "final.safetensors")
    w = {name: tensor.double().numpy() for name, tensor in stored.items()}
    norms = config["dataset_average_activation_norm"]
    s_in, s_out = (config["d_model"] ** 0.5 / norms[side] for side in ("in", "out"))
    # standardize_parameters_of_dataset_activation_scaling
    b_enc, b_dec = w["encoder.bias"] / s_in, w["decoder.bias"] / s_out
    w_enc, w_dec = w["encoder.weight"], w["decoder.weight"] * s_in / s_out
    # transform_to_unit_decoder_norm
    norm = np.linalg.norm(w_dec, axis=0) if config["sparsity_include_decoder_norm"] else np.ones(len(b_enc))
    w_enc, b_enc, w_dec = w_enc * norm[:, None], b_enc * norm, w_dec / norm
    pre = x.astype(np.float64) @ w_enc.T + b_enc
    activations = np.where(pre > config["jump_relu_threshold"], pre, 0)
    return activations, activations @ w_dec.T + b_dec


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_decoder_norm", [True, False])
def test_saes_equal_brute_force(tmp_path: Path, case: str, with_decoder_norm: bool) -> None:
    folder = copy(tmp_path / "sae", case, sparsity_include_decoder_norm=with_decoder_norm)
    x = np.load(folder / "expected.npz")["x"]
    activations, reconstruction = brute_force(folder, x)
    encoder = load_sae(str(folder))
    features = encoder.encode(torch.from_numpy(x))
    result = to_dense(features, 48)
    assert 0 < features.nnz < result.size
    np.testing.assert_array_equal(result > 0, activations > 0)
    np.testing.assert_allclose(result, activations, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(encoder.decode(features), reconstruction, rtol=1e-4, atol=1e-5)


def test_an_activation_is_the_length_that_it_adds_to_the_reconstruction() -> None:
    weights = load_sae(str(DATA / "llama_scope-transcoder")).weights()
    np.testing.assert_allclose(np.linalg.norm(weights["W_dec"], axis=1), 1, rtol=1e-6)


def test_saelens_differs_as_the_note_says(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = DATA / "llama_scope-res"
    package = sae_lens()
    loaders = importlib.import_module("sae_lens.loading.pretrained_sae_loaders")

    def serve(repo_id: str, filename: str, force_download: bool = False, subfolder: str | None = None) -> str:
        return str(folder / ("checkpoints" if subfolder else "") / Path(filename).name)

    monkeypatch.setattr(loaders, "hf_hub_download", serve)
    config, state, _ = loaders.llama_scope_sae_huggingface_loader(
        "fnlp/x", "y", cfg_overrides={"dtype": "float32", "normalize_activations": "none"}
    )
    sae = package.SAE.from_dict(loaders.handle_config_defaulting(config))
    sae.load_state_dict(state)
    scale = 16**0.5 / 6.3
    sae.fold_activation_norm_scaling_factor(scale)
    x = torch.from_numpy(np.load(folder / "expected.npz")["x"])
    with torch.no_grad():
        theirs = sae.encode(x).numpy()
    norms = load_file(folder / "checkpoints" / "final.safetensors")["decoder.weight"].float().norm(dim=0)
    ours = to_dense(load_sae(str(folder)).encode(x), 48)
    both = (ours > 0) & (theirs > 0)
    in_their_units = ours * scale / norms.numpy()
    np.testing.assert_allclose(in_their_units[both], theirs[both], rtol=1e-5)
    # on where ours is above n times our threshold: n is 1.5 or so, so fewer fire
    pre = x.numpy() @ load_sae(str(folder)).weights()["W_enc"] + load_sae(str(folder)).weights()["b_enc"]
    np.testing.assert_array_equal(theirs > 0, pre > 1.1 * norms.numpy())
    assert 0 < both.sum() < (ours > 0).sum()
    note = read_metadata(str(folder)).notes[0]
    assert "its activation is ours times s_out / n" in note


def test_a_topk_sae_with_a_threshold_is_a_jumprelu_sae_as_with_its_authors(tmp_path: Path) -> None:
    folder = copy(tmp_path / "sae", act_fn="topk")
    assert_equals_golden(DATA / "llama_scope-res", str(folder))


def test_the_digest_follows_threshold_and_norms_and_no_hook(tmp_path: Path) -> None:
    first = sae_digest(str(copy(tmp_path / "a")))
    assert sae_digest(str(copy(tmp_path / "b", k_warmup_steps=7))) == first
    assert sae_digest(str(copy(tmp_path / "c", jump_relu_threshold=1.2))) != first
    norms = {"in": 6.3, "out": 6.4}
    assert sae_digest(str(copy(tmp_path / "d", dataset_average_activation_norm=norms))) != first
    assert sae_digest(str(copy(tmp_path / "e", sparsity_include_decoder_norm=False))) != first


def test_a_path_of_a_published_sae_tells_the_model(tmp_path: Path) -> None:
    assert read_metadata(str(copy(tmp_path / "mine"))).model_name is None
    metadata = read_metadata(str(copy(tmp_path / "Llama3_1-8B-Base-L8R-8x")))
    assert metadata.model_name == "meta-llama/Llama-3.1-8B"
    assert (metadata.prepend_bos, metadata.context_size) == (True, 1024)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_fn": "relu"}, "act_fn 'relu'; known: jumprelu, topk with a threshold"),
        ({"norm_activation": "token-wise"}, "norm_activation 'token-wise'; known: dataset-wise"),
        ({"use_glu_encoder": True}, "use_glu_encoder True; only False is known"),
        ({"apply_decoder_bias_to_pre_encoder": True}, "apply_decoder_bias_to_pre_encoder True"),
        ({"use_decoder_bias": False}, "use_decoder_bias False; only True"),
        ({"jump_relu_threshold": 0}, "jump_relu_threshold 0; it must be a number between"),
        ({"dataset_average_activation_norm": None}, r"dataset_average_activation_norm\.in None"),
        ({"dataset_average_activation_norm": {"in": 1, "out": -1}}, r"activation_norm\.out -1"),
        ({"d_model": "16"}, "d_model '16'; it must be a whole number"),
        ({"d_sae": 47}, r"encoder.weight in .* has shape \[48, 16\]; its configuration says \[47, 16\]"),
    ],
)
def test_what_is_not_known_of_the_format_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_sae(str(copy(tmp_path / "sae", **changes)))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    folder = copy(tmp_path / "sae")
    (folder / "checkpoints" / "final.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no final\.safetensors"):
        sae_digest(str(folder))
