"""Reading SAELens folders: metadata without torch, digests, old configurations, and every way to be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.saes import load_sae, read_metadata, sae_digest
from schemas.errors import InputError
from tests.kit import write_sae
from tests.saes.reference import sae_lens


def edit(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "cfg.json").read_text())
    metadata = config["metadata"] | changes.pop("metadata", {})
    (folder / "cfg.json").write_text(json.dumps(config | {"metadata": metadata} | changes))
    return folder


def test_metadata_tells_what_the_sae_was_trained_with(tmp_path: Path) -> None:
    about = {"context_size": 128, "model_name": "gpt2", "model_from_pretrained_kwargs": {"n_ctx": 7}, "x": 1}
    metadata = read_metadata(
        str(write_sae(tmp_path, "topk", 8, 32, "blocks.1.hook_resid_post", k=5, **about))
    )
    assert (metadata.architecture, metadata.d_model, metadata.d_sae, metadata.k) == ("topk", 8, 32, 5)
    assert (metadata.hook_name, metadata.prepend_bos, metadata.context_size) == (
        "blocks.1.hook_resid_post",
        True,
        128,
    )
    assert (metadata.model_name, dict(metadata.model_kwargs)) == ("gpt2", {"n_ctx": 7})
    assert metadata.extra["x"] == 1


def test_metadata_and_digest_need_no_torch(tmp_path: Path) -> None:
    folder = write_sae(tmp_path, "gated")
    code = (
        "import sys; from pipeline.saes import read_metadata, sae_digest\n"
        f"read_metadata({str(folder)!r}); sae_digest({str(folder)!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def assert_encodes_as(sae: Any, folder: Path, x: torch.Tensor) -> None:
    features = load_sae(str(folder)).encode(x)
    with torch.no_grad():
        expected = sae.encode(x).numpy()
    rows = np.repeat(np.arange(len(x)), np.diff(features.indptr))
    np.testing.assert_array_equal(np.argwhere(expected), np.stack([rows, features.indices], axis=1))
    np.testing.assert_allclose(features.data, expected[expected != 0], rtol=1e-5)
    assert features.nnz > len(x)


def test_folders_that_saelens_saved_are_read(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sae = sae_lens().TopKSAE(sae_lens().TopKSAEConfig(d_in=12, d_sae=90, k=4))
        sae.save_model(tmp_path)
        assert_encodes_as(sae, tmp_path, torch.randn(50, 12))


def test_a_batchtopk_sae_saved_for_inference_is_read(tmp_path: Path) -> None:
    options = {
        "d_in": 12,
        "d_sae": 90,
        "k": 4,
        "rescale_acts_by_decoder_norm": False,
        "decoder_init_norm": 1.0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sae = sae_lens().BatchTopKTrainingSAE(sae_lens().BatchTopKTrainingSAEConfig(**options))
        sae.topk_threshold.fill_(0.9)
        sae.save_inference_model(tmp_path)
        assert read_metadata(str(tmp_path)).architecture == "jumprelu"
        assert_encodes_as(sae_lens().SAE.load_from_disk(tmp_path), tmp_path, torch.randn(50, 12))


def test_the_digest_follows_numbers_and_nothing_else(tmp_path: Path) -> None:
    first = sae_digest(str(write_sae(tmp_path / "a", "topk", k=8)))
    assert sae_digest(str(write_sae(tmp_path / "b", "topk", k=8, model_name="other"))) == first
    assert sae_digest(str(edit(tmp_path / "b", device="cuda"))) == first
    assert sae_digest(str(write_sae(tmp_path / "c", "topk", k=9))) != first
    assert sae_digest(str(write_sae(tmp_path / "d", "topk", k=8, seed=1))) != first
    assert sae_digest(str(write_sae(tmp_path / "e", "topk", k=8, apply_b_dec_to_input=False))) != first


@pytest.mark.parametrize("activation", ["relu", "topk"])
def test_a_configuration_from_before_version_6_means_the_same(tmp_path: Path, activation: str) -> None:
    new = write_sae(tmp_path / "new", "standard" if activation == "relu" else "topk", k=8)
    old = write_sae(tmp_path / "old", "standard" if activation == "relu" else "topk", k=8)
    flat = {
        "d_in": 16,
        "d_sae": 64,
        "hook_point": "layers.1",
        "context_size": 32,
        "normalize_activations": False,
    }
    flat |= {
        "activation_fn_str": activation,
        "activation_fn_kwargs": {"k": 8} if activation == "topk" else {},
    }
    (old / "cfg.json").write_text(json.dumps(flat))
    metadata = read_metadata(str(old))
    assert (metadata.hook_name, metadata.context_size, metadata.prepend_bos) == ("layers.1", 32, True)
    assert sae_digest(str(old)) == sae_digest(str(new))


def test_a_scaling_factor_of_ones_and_a_log_threshold_are_understood(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = write_sae(tmp_path, "jumprelu")
    weights = load_file(folder / "sae_weights.safetensors")
    threshold = weights.pop("threshold")
    save_file(
        weights | {"log_threshold": np.log(threshold), "scaling_factor": np.ones(64, np.float32)},
        folder / "sae_weights.safetensors",
    )
    np.testing.assert_allclose(load_sae(str(folder)).weights()["threshold"], threshold, rtol=1e-6)


def test_a_norm_factor_that_nobody_tells_scales_nothing_as_in_saelens(tmp_path: Path) -> None:
    plain = load_sae(str(write_sae(tmp_path / "a")))
    folder = write_sae(tmp_path / "b", normalize_activations="expected_average_only_in")
    x = torch.ones(3, 16)
    scaled = load_sae(str(folder))
    np.testing.assert_array_equal(scaled.encode(x).data, plain.encode(x).data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "temporal"}, "architecture 'temporal'; known: standard, jumprelu, gated, topk"),
        ({"normalize_activations": "covariance_whitening"}, "known: none, expected_average_only_in"),
        ({"architecture": "topk", "k": 2.5}, "k 2.5; it must be a whole number"),
        ({"architecture": "topk"}, "k None; it must be a whole number"),
        ({"apply_b_dec_to_input": "false"}, "apply_b_dec_to_input 'false'; it must be true or false"),
        ({"apply_b_dec_to_input": None}, "apply_b_dec_to_input None; it must be true or false"),
        (
            {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": "no"},
            "rescale_acts_by_decoder_norm 'no'; it must be true or false",
        ),
        (
            {"architecture": "transcoder", "d_out": 16},
            "has apply_b_dec_to_input true, which SAELens refuses for a transcoder",
        ),
        ({"metadata": {"context_size": 1}}, "context_size 1; it must be a whole number from 2 to 1048576"),
        ({"metadata": {"context_size": 1 << 21}}, "context_size 2097152; it must be a whole number from 2"),
        (
            {"architecture": "gated"},
            "a gated SAE of format saelens has W_dec, W_enc, b_dec, b_gate, b_mag, r_mag",
        ),
        ({"d_sae": 65}, r"shape \[16, 64\]; its configuration says \[16, 65\]"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = edit(write_sae(tmp_path), **changes)
    with pytest.raises(InputError, match=message):
        load_sae(str(folder))


def test_a_missing_folder_file_or_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        read_metadata(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="known format"):
        read_metadata(str(tmp_path))
    (write_sae(tmp_path) / "sae_weights.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no sae_weights\.safetensors"):
        sae_digest(str(tmp_path))
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        read_metadata(str(tmp_path))
    (tmp_path / "cfg.json").write_text("{}")
    with pytest.raises(InputError, match="no d_in and d_sae"):
        read_metadata(str(tmp_path))


def test_damaged_or_unfinished_weights_are_named(tmp_path: Path) -> None:
    bad = np.full(64, np.nan, np.float32)
    with pytest.raises(InputError, match=r"b_enc of SAE .* has NaN"):
        load_sae(str(write_sae(tmp_path, weights={"b_enc": bad})))
    (tmp_path / "sae_weights.safetensors").write_bytes(b"\x09")
    with pytest.raises(InputError, match="damaged"):
        load_sae(str(tmp_path))
