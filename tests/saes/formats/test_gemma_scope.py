"""Gemma Scope's params.npz: parity with SAELens' loader, and what a path tells and does not tell."""

from __future__ import annotations

import importlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.saes import load_sae, read_metadata, sae_digest
from schemas.errors import InputError
from tests.kit import draw_sae_weights
from tests.saes.parity import assert_equals_module, rows_of
from tests.saes.reference import sae_lens

D_MODEL, D_SAE = 16, 80

RES = "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
TRANSCODER = "gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_54"
EMBEDDING = "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6"


def write(folder: Path, lower: bool = False, **changes: Any) -> Path:
    weights: dict[str, Any] = draw_sae_weights("jumprelu", D_MODEL, D_SAE, 0) | changes
    folder.mkdir(parents=True, exist_ok=True)
    named = {name.lower() if lower else name: array for name, array in weights.items() if array is not None}
    np.savez(folder / "params.npz", **named)
    return folder


def by_saelens(folder: Path, monkeypatch: pytest.MonkeyPatch, loader: str, **overrides: Any) -> Any:
    """SAELens' module, made by its loader of published files from the one in `folder`."""
    package = sae_lens()
    loaders = importlib.import_module("sae_lens.loading.pretrained_sae_loaders")
    monkeypatch.setattr(loaders, "hf_hub_download", lambda **request: str(folder / "params.npz"))
    repository, name = folder.as_posix().split("/google/")[1].split("/", 1)
    widths = {"d_in": D_MODEL, "d_sae": D_SAE, "normalize_activations": "none", **overrides}
    config, state, _ = getattr(loaders, loader)(f"google/{repository}", name, cfg_overrides=widths)
    sae = package.SAE.from_dict(loaders.handle_config_defaulting(config) | {"device": "cpu"})
    sae.load_state_dict(state)
    return sae


@pytest.mark.parametrize("lower", [False, True])
def test_residual_saes_equal_saelens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lower: bool) -> None:
    folder = write(tmp_path / "google" / RES, lower)
    sae = by_saelens(folder, monkeypatch, "gemma_2_sae_huggingface_loader")
    assert_equals_module(load_sae(str(folder)), sae, rows_of(D_MODEL))
    assert_equals_module(load_sae(str(folder / "params.npz")), sae, rows_of(D_MODEL))


def test_transcoders_equal_saelens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "google" / TRANSCODER)
    sae = by_saelens(folder, monkeypatch, "gemma_2_transcoder_huggingface_loader", d_out=D_MODEL)
    encoder = load_sae(str(folder))
    assert (encoder.metadata.transcoder, encoder.metadata.d_out) == (True, D_MODEL)
    assert_equals_module(encoder, sae, rows_of(D_MODEL))


def test_embedding_saes_read_scaled_embeddings_as_with_saelens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbiased = np.zeros(D_MODEL, np.float32)  # SAELens scales W_dec and leaves b_dec
    folder = write(tmp_path / "google" / EMBEDDING, b_dec=unbiased)
    sae = by_saelens(folder, monkeypatch, "gemma_2_sae_huggingface_loader")
    assert_equals_module(load_sae(str(folder)), sae, rows_of(D_MODEL, scale=D_MODEL**0.5))


def test_an_embedding_sae_is_the_plain_one_of_unscaled_embeddings(tmp_path: Path) -> None:
    plain = load_sae(str(write(tmp_path / "plain")))
    embedding = load_sae(str(write(tmp_path / EMBEDDING)))
    x = rows_of(D_MODEL)
    features = embedding.encode(x * D_MODEL**0.5)
    expected = plain.encode(x)
    np.testing.assert_array_equal(features.indices, expected.indices)
    np.testing.assert_allclose(features.data, expected.data, rtol=1e-5)
    np.testing.assert_allclose(
        embedding.decode(features), plain.decode(expected) * D_MODEL**0.5, rtol=1e-4, atol=1e-4
    )
    assert "folded into its weights" in embedding.metadata.notes[0]
    assert sae_digest(str(tmp_path / EMBEDDING)) != sae_digest(str(tmp_path / "plain"))


@pytest.mark.parametrize(
    ("folder", "model", "hooks", "l0"),
    [
        (RES, "gemma-2-2b", ("blocks.12.hook_resid_post", None), 82),
        (EMBEDDING, "gemma-2-2b", ("hook_embed", None), 6),
        (TRANSCODER, "gemma-2-2b", ("blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out"), 54),
        (
            "models--google--gemma-scope-9b-it-res/snapshots/0f1e2d/layer_20/width_131k/average_l0_153",
            "gemma-2-9b-it",
            ("blocks.20.hook_resid_post", None),
            153,
        ),
        (
            "gemma-scope-27b-pt-att/layer_0/width_16k/average_l0_7",
            "gemma-2-27b",
            ("blocks.0.attn.hook_z", None),
            7,
        ),
        (
            "gemma-scope-2b-pt-mlp/layer_1/width_16k/canonical",
            "gemma-2-2b",
            ("blocks.1.hook_mlp_out", None),
            None,
        ),
        ("layer_5/width_16k/average_l0_82", None, (None, None), 82),
        ("mine", None, (None, None), None),
    ],
)
def test_a_path_tells_model_hooks_and_l0(
    tmp_path: Path, folder: str, model: str | None, hooks: tuple[str | None, str | None], l0: float | None
) -> None:
    metadata = read_metadata(str(write(tmp_path / folder)))
    assert (metadata.format, metadata.architecture) == ("gemma_scope", "jumprelu")
    assert (metadata.d_model, metadata.d_sae, metadata.apply_b_dec_to_input) == (D_MODEL, D_SAE, False)
    assert metadata.model_name == model
    assert (metadata.hook_name, metadata.hook_name_out) == hooks
    assert dict(metadata.card) == ({} if l0 is None else {"l0": l0})
    assert (metadata.prepend_bos, metadata.context_size) == ((True, 1024) if model else (None, None))


def test_links_of_the_hubs_cache_are_not_followed(tmp_path: Path) -> None:
    blob = write(tmp_path / "blobs") / "params.npz"
    place = tmp_path / "models--google--gemma-scope-2b-pt-res" / "snapshots" / "abc" / "layer_4" / "width_16k"
    (place / "average_l0_60").mkdir(parents=True)
    (place / "average_l0_60" / "params.npz").symlink_to(blob)
    assert read_metadata(str(place / "average_l0_60")).hook_name == "blocks.4.hook_resid_post"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": None}, "of format gemma_scope has W_dec, W_enc, b_dec, b_enc, threshold"),
        ({"other": np.zeros(3)}, "holds W_dec, W_enc, b_dec, b_enc, other, threshold"),
        ({"W_enc": np.zeros(3, np.float32)}, "with two dimensions"),
        ({"b_enc": np.zeros(3, np.float32)}, r"b_enc .* has shape \[3\]; its configuration says \[80\]"),
        ({"b_enc": np.full(80, np.nan, np.float32)}, "b_enc of SAE .* has NaN"),
    ],
)
def test_malformed_arrays_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_sae(str(write(tmp_path, **changes)))


def test_a_file_that_is_no_npz_is_named(tmp_path: Path) -> None:
    (tmp_path / "params.npz").write_bytes(b"no zip")
    with pytest.raises(InputError, match="is damaged"):
        load_sae(str(tmp_path))
    with zipfile.ZipFile(tmp_path / "params.npz", "w"):
        pass
    with pytest.raises(InputError, match="holds no arrays"):
        read_metadata(str(tmp_path))


def test_metadata_and_digest_need_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    folder = write(tmp_path)
    code = (
        "import sys; from pipeline.saes import read_metadata, sae_digest\n"
        f"read_metadata({str(folder)!r}); sae_digest({str(folder)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_equal_to_the_threshold_is_off(tmp_path: Path) -> None:
    ones, zeros = np.ones((1, 3), np.float32), np.zeros(3, np.float32)
    threshold = np.array([1, np.nextafter(np.float32(1), np.float32(0)), 2], np.float32)
    weights = {"W_enc": ones, "W_dec": ones.T, "b_enc": zeros, "b_dec": zeros[:1], "threshold": threshold}
    features = load_sae(str(write(tmp_path, **weights))).encode(torch.ones(1, 1))
    assert features.indices.tolist() == [1]
