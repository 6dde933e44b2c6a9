"""Gemma Scope 2: parity with SAELens' loader of published files, and what folder and configuration tell."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.saes import load_sae, read_metadata
from schemas.errors import InputError
from tests.kit import draw_sae_weights
from tests.saes.parity import assert_equals_module, rows_of
from tests.saes.reference import sae_lens

D_MODEL, D_SAE, D_OUT = 16, 80, 24

RES = "resid_post/layer_17_width_16k_l0_medium"
TRANSCODER = "transcoder/layer_17_width_16k_l0_small_affine"


def write(root: Path, name: str = RES, config: dict[str, Any] | None = None, **tensors: torch.Tensor) -> Path:
    folder = root / "gemma-scope-2-4b-pt" / name
    folder.mkdir(parents=True)
    drawn = {
        key.lower(): torch.from_numpy(w) for key, w in draw_sae_weights("jumprelu", D_MODEL, D_SAE, 0).items()
    }
    message = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-4b-pt",
        "hf_hook_point_in": "model.layers.17.output",
    }
    save_file(drawn | tensors, folder / "params.safetensors")
    (folder / "config.json").write_text(json.dumps(message | (config or {})))
    return folder


def write_transcoder(root: Path, skip: bool) -> Path:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "w_dec": torch.randn(D_SAE, D_OUT, generator=generator),
        "b_dec": torch.randn(D_OUT, generator=generator),
    }
    if skip:
        tensors["affine_skip_connection"] = torch.randn(D_MODEL, D_OUT, generator=generator)
    config = {
        "affine_connection": skip,
        "hf_hook_point_in": "model.layers.17.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.17.post_feedforward_layernorm.output",
    }
    name = TRANSCODER if skip else TRANSCODER.removesuffix("_affine")
    return write(root, name, config, **tensors)


def by_saelens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    """SAELens' module and configuration, made by its loader of published files."""
    package = sae_lens()
    loaders = importlib.import_module("sae_lens.loading.pretrained_sae_loaders")

    def serve(repo_id: str, filename: str, subfolder: str | None = None, **request: Any) -> str:
        return str(folder / Path(filename).name)

    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(folder / "params.safetensors").items()}
    monkeypatch.setattr(loaders, "hf_hub_download", serve)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lambda *request: shapes)
    inside = "/".join(folder.parts[-2:])
    config, state, _ = loaders.gemma_3_sae_huggingface_loader("google/gemma-scope-2-4b-pt", inside)
    config = loaders.handle_config_defaulting(config)
    sae = package.SAE.from_dict(config)
    sae.load_state_dict(state)
    return sae, config


def test_saes_equal_saelens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path)
    sae, config = by_saelens(folder, monkeypatch)
    encoder = load_sae(str(folder))
    assert_equals_module(encoder, sae, rows_of(D_MODEL))
    assert_equals_module(load_sae(str(folder / "params.safetensors")), sae, rows_of(D_MODEL))
    assert not encoder.metadata.transcoder
    assert encoder.metadata.hook_name == config["metadata"]["hook_name"] == "blocks.17.hook_resid_post"
    assert encoder.metadata.model_name == config["metadata"]["model_name"] == "google/gemma-3-4b-pt"
    assert encoder.metadata.extra["hf_hook_point_in"] == "model.layers.17.output"


@pytest.mark.parametrize("skip", [True, False])
def test_transcoders_equal_saelens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip: bool) -> None:
    folder = write_transcoder(tmp_path, skip)
    sae, config = by_saelens(folder, monkeypatch)
    metadata = read_metadata(str(folder))
    assert (metadata.transcoder, metadata.skip, metadata.d_out) == (True, skip, D_OUT)
    about = config["metadata"]
    assert metadata.hook_name_out == about["hook_name_out"] == "blocks.17.hook_mlp_out"
    assert (metadata.hook_name, about["hook_name"]) == ("blocks.17.ln2.hook_out", "blocks.17.hook_mlp_in")
    assert "with its gain" in metadata.notes[0]
    assert_equals_module(load_sae(str(folder)), sae, rows_of(D_MODEL))


@pytest.mark.parametrize(
    ("name", "point", "hook"),
    [
        ("attn_out/layer_3_width_16k_l0_small", None, "blocks.3.attn.hook_z"),
        ("mlp_out_all/layer_0_width_16k_l0_small", None, "blocks.0.hook_mlp_out"),
        ("transcoder_all/layer_0_width_16k_l0_small", None, "blocks.0.ln2.hook_out"),
        ("elsewhere/mine", None, None),
        ("elsewhere/mine", "model.layers.5.output", "blocks.5.hook_resid_post"),
        ("elsewhere/mine", "model.layers.5.self_attn.o_proj.input", "blocks.5.attn.hook_z"),
        ("resid_post/layer_3", "model.language_model.layers.4.output", "blocks.4.hook_resid_post"),
        ("resid_post/layer_3", "model.layers.4.somewhere.output", None),
    ],
)
def test_its_file_tells_the_hook_and_where_it_does_not_the_path(
    tmp_path: Path, name: str, point: str | None, hook: str | None
) -> None:
    assert read_metadata(str(write(tmp_path, name, {"hf_hook_point_in": point}))).hook_name == hook


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        ({"architecture": "topk"}, {}, "architecture 'topk'; a Gemma Scope 2 SAE has jump_relu"),
        ({}, {"w_dec": torch.zeros(D_SAE, 5, D_OUT)}, "cross-layer transcoder: it writes to 5 layers"),
        ({}, {"w_enc": torch.zeros(3)}, "w_enc and w_dec with two dimensions"),
        ({}, {"threshold": torch.zeros(3)}, r"threshold .* has shape \[3\]"),
        ({}, {"more": torch.zeros(3)}, "holds b_dec, b_enc, more"),
    ],
)
def test_malformed_files_are_named(
    tmp_path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_sae(str(write(tmp_path, RES, config, **tensors)))


def test_a_missing_configuration_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
        read_metadata(str(folder))
