"""sparsify folders: as the package encodes them, what their names and files tell, every way to be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.saes import load_sae, read_metadata, sae_digest
from schemas.errors import InputError
from tests.kit import write_tiny_gpt2, write_tiny_llama
from tests.saes.golden.check import DATA, assert_equals_golden, copy_of

CASES = {
    "sparsify-topk": "layers.12",
    "sparsify-groupmax": "h.5.attn",
    "sparsify-transcoder": "layers.3.mlp",
    "sparsify-skip": "gpt_neox.layers.3.mlp",
}
TRANSCODERS = ("sparsify-transcoder", "sparsify-skip")


def edit(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> Path:
    config = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps({n: v for n, v in config.items() if n not in drop}))
    return folder


def edit_weights(folder: Path, drop: tuple[str, ...] = (), **changes: torch.Tensor) -> Path:
    weights = load_file(folder / "sae.safetensors") | changes
    save_file({n: w for n, w in weights.items() if n not in drop}, folder / "sae.safetensors")
    return folder


def topk(tmp_path: Path, case: str = "sparsify-topk") -> Path:
    return copy_of(case, tmp_path) / CASES[case]


def x_of(case: str) -> torch.Tensor:
    with np.load(DATA / case / "expected.npz") as expected:
        return torch.from_numpy(expected["x"])


@pytest.mark.parametrize("case", CASES)
def test_features_and_reconstruction_equal_sparsify(case: str) -> None:
    assert_equals_golden(DATA / case, str(DATA / case / CASES[case]))


@pytest.mark.parametrize("case", CASES)
def test_the_weights_file_tells_the_sae_as_its_folder_does(case: str) -> None:
    folder = DATA / case / CASES[case]
    assert_equals_golden(DATA / case, str(folder / "sae.safetensors"))
    assert read_metadata(str(folder / "sae.safetensors")) == read_metadata(str(folder))


def test_metadata_tells_what_the_files_say() -> None:
    metadata = read_metadata(str(DATA / "sparsify-skip" / CASES["sparsify-skip"]))
    assert (metadata.format, metadata.architecture, metadata.k) == ("sparsify", "topk", 8)
    assert (metadata.d_model, metadata.d_sae, metadata.width_out) == (16, 64, 16)
    assert (metadata.transcoder, metadata.skip, metadata.apply_b_dec_to_input) == (True, True, False)
    assert (metadata.hook_name, metadata.hook_name_out) == ("blocks.3.mlp.hook_in", "blocks.3.mlp.hook_out")
    assert (metadata.model_name, metadata.context_size) == ("org/model", 2048)
    assert "normalize_decoder" in metadata.extra
    assert not any("norm after the module" in note for note in metadata.notes)


def test_metadata_and_digest_need_no_torch() -> None:
    folder = str(DATA / "sparsify-topk" / "layers.12")
    code = (
        "import sys; from pipeline.saes import read_metadata, sae_digest\n"
        f"read_metadata({folder!r}); sae_digest({folder!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("layers.12", "blocks.12.hook_resid_post"),
        ("model.layers.7", "blocks.7.hook_resid_post"),
        ("gpt_neox.layers.3", "blocks.3.hook_resid_post"),
        ("transformer.h.5", "blocks.5.hook_resid_post"),
        ("h.5", "blocks.5.hook_resid_post"),
        ("layers_4", "blocks.4.hook_resid_post"),
        ("layers.2/seed1", "blocks.2.hook_resid_post"),
        ("layers.3.mlp", "blocks.3.hook_mlp_out"),
        ("layers.3.self_attn", "blocks.3.hook_attn_out"),
        ("h.3.attn", "blocks.3.hook_attn_out"),
        ("layers.3.attention", "blocks.3.hook_attn_out"),
        ("embed_tokens", "hook_embed"),
        ("wte", "hook_embed"),
        ("layers.3.mlp.up_proj", None),
        ("norm", None),
        ("my layers.3", None),
        ("layers.x", None),
    ],
)
def test_the_name_of_the_folder_tells_the_hook(tmp_path: Path, name: str, hook: str | None) -> None:
    folder = tmp_path / name
    folder.parent.mkdir(exist_ok=True, parents=True)
    topk(tmp_path).rename(folder)
    assert read_metadata(str(folder)).hook_name == hook
    exact = any("norm after the module" in note for note in read_metadata(str(folder)).notes)
    assert exact == (hook is not None and hook.endswith(("mlp_out", "attn_out")))


@pytest.mark.parametrize(
    ("name", "hooks"),
    [
        ("layers.12", ("blocks.12.hook_resid_pre", "blocks.12.hook_resid_post")),
        ("h.3.attn", ("blocks.3.attn.hook_in", "blocks.3.attn.hook_out")),
        ("embed_tokens", (None, None)),
        ("lm_head", (None, None)),
    ],
)
def test_a_transcoder_reads_what_goes_into_its_module(
    tmp_path: Path, name: str, hooks: tuple[str | None, str | None]
) -> None:
    topk(tmp_path, "sparsify-transcoder").rename(tmp_path / name)
    metadata = read_metadata(str(tmp_path / name))
    assert (metadata.hook_name, metadata.hook_name_out) == hooks


@pytest.mark.parametrize("write", [write_tiny_gpt2, write_tiny_llama])
def test_the_hooks_of_an_mlp_transcoder_are_the_input_and_output_of_the_module(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bridge = TransformerBridge.boot_transformers(str(write(tmp_path)), device="cpu", dtype=torch.float32)
        model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    seen: list[torch.Tensor] = []
    layers = model.base_model.h if write is write_tiny_gpt2 else model.base_model.layers
    layers[2].mlp.register_forward_hook(lambda module, args, output: seen.extend([args[0], output]))
    result: dict[str, torch.Tensor] = {}
    names = ("blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out")
    for name in names:
        bridge.hook_dict[name].add_hook(lambda value, hook, name=name: result.__setitem__(name, value))
    with torch.no_grad():
        model(torch.tensor([[0, 5, 9]]))
        bridge.eval().forward(torch.tensor([[0, 5, 9]]), return_type=None)
    for name, expected in zip(names, seen, strict=True):
        torch.testing.assert_close(result[name], expected)


def test_num_latents_0_and_missing_keys_mean_what_sparsify_takes_for_them(tmp_path: Path) -> None:
    folder = edit(
        topk(tmp_path), drop=("activation", "transcode", "skip_connection", "multi_topk"), num_latents=0
    )
    metadata = read_metadata(str(edit(folder, expansion_factor=4)))
    assert (metadata.architecture, metadata.d_sae, metadata.transcoder) == ("topk", 64, False)
    defaults = read_metadata(str(edit(folder, drop=("k", "num_latents", "expansion_factor"))))
    assert (defaults.k, defaults.d_sae) == (32, 512)


def test_unknown_keys_and_normalize_decoder_change_nothing(tmp_path: Path) -> None:
    folder, case = topk(tmp_path), tmp_path / "sparsify-topk"
    digest = sae_digest(str(folder))
    edit(folder, normalize_decoder=False, multi_topk=True, something_new=[1])
    assert_equals_golden(case, str(folder))
    assert sae_digest(str(folder)) == digest
    assert sae_digest(str(edit(folder, k=7))) != digest
    assert sae_digest(str(edit(folder, k=8, transcode=True))) != digest


def test_an_early_signed_sae_keeps_the_largest_magnitudes_with_their_signs(tmp_path: Path) -> None:
    folder = edit(topk(tmp_path), signed=True)
    w, x = load_file(folder / "sae.safetensors"), x_of("sparsify-topk")
    pre = (x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"]
    _, chosen = pre.abs().topk(8)
    features = load_sae(str(folder)).encode(x)
    np.testing.assert_array_equal(features.indices.reshape(-1, 8), chosen.sort(dim=1).values)
    np.testing.assert_allclose(
        features.data.reshape(-1, 8), pre.gather(1, chosen.sort(dim=1).values), rtol=1e-4
    )
    assert (features.data < 0).any()


def test_b_dec_is_taken_from_x_unless_it_is_a_transcoder(tmp_path: Path) -> None:
    moved = {"b_dec": torch.full((16,), 0.7)}
    for case in CASES:
        folder, x = topk(tmp_path, case), x_of(case)
        before = load_sae(str(folder)).encode(x)
        dtype = load_file(folder / "sae.safetensors")["b_dec"].dtype
        after = load_sae(str(edit_weights(folder, b_dec=moved["b_dec"].to(dtype)))).encode(x)
        same = np.array_equal(before.indices, after.indices) and np.array_equal(before.data, after.data)
        assert same == (case in TRANSCODERS)


def test_the_skip_connection_is_of_the_reconstruction_alone(tmp_path: Path) -> None:
    folder, x = topk(tmp_path, "sparsify-skip"), x_of("sparsify-skip")
    w_skip = load_file(folder / "sae.safetensors")["W_skip"]
    full = load_sae(str(folder))
    bare = load_sae(str(edit(edit_weights(folder, drop=("W_skip",)), skip_connection=False)))
    features = full.encode(x)
    np.testing.assert_array_equal(features.data, bare.encode(x).data)
    difference = full.decode(features, like=x) - bare.decode(features)
    np.testing.assert_allclose(difference, x @ w_skip.T, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="like=x"):
        full.decode(features)


def test_bfloat16_weights_are_computed_in_float32() -> None:
    folder = DATA / "sparsify-transcoder" / "layers.3.mlp"
    assert load_file(folder / "sae.safetensors")["W_dec"].dtype == torch.bfloat16
    assert load_sae(str(folder)).weights()["W_dec"].dtype == np.float32


def spoil_config(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: edit(folder, **changes)


def spoil_weights(drop: tuple[str, ...] = (), **changes: torch.Tensor) -> Callable[[Path], object]:
    changes = {name.replace("encoder_", "encoder."): tensor for name, tensor in changes.items()}
    return lambda folder: edit_weights(folder, drop, **changes)


def overwrite(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def truncate(folder: Path) -> None:
    whole = (folder / "sae.safetensors").read_bytes()
    (folder / "sae.safetensors").write_bytes(whole[: len(whole) // 2])


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda folder: (folder / "cfg.json").unlink(), r"has no cfg\.json"),
    "configuration not JSON": (overwrite("cfg.json", b"{"), "is not JSON"),
    "configuration not text": (overwrite("cfg.json", b"\xff\xfe\x00"), "is not JSON"),
    "configuration a list": (overwrite("cfg.json", b"[1]"), "not a JSON object"),
    "configuration empty": (overwrite("cfg.json", b"{}"), "has d_in None"),
    "run not JSON": (
        lambda folder: (folder.parent / "config.json").write_text("{"),
        r"config\.json is not JSON",
    ),
    "run of another length": (
        lambda folder: (folder.parent / "config.json").write_text('{"sae": {}, "ctx_len": "long"}'),
        "ctx_len 'long'",
    ),
    "weights empty": (overwrite("sae.safetensors", b""), "is damaged"),
    "weights truncated": (truncate, "is damaged"),
    "weights a pickle": (overwrite("sae.safetensors", b"\x80\x04\x95cos\nsystem\n(S'x'\ntR."), "is damaged"),
    "activation unknown": (spoil_config(activation="relu"), "activation 'relu'; known: topk, groupmax"),
    "activation a number": (spoil_config(activation=3), "activation 3; known"),
    "k too large": (spoil_config(k=65), "k 65 for 64 features"),
    "k zero": (spoil_config(k=0), "k 0; it must be a whole number from 1"),
    "k text": (spoil_config(k="8"), "k '8'; it must be a whole number"),
    "k not a number": (spoil_config(k=float("nan")), "k nan; it must be a whole number"),
    "k infinite": (spoil_config(k=float("inf")), "k inf; it must be a whole number"),
    "k true": (spoil_config(k=True), "k True; it must be a whole number"),
    "uneven groups": (
        spoil_config(activation="groupmax", k=7),
        "k 7 for 64 features: groups are of one size",
    ),
    "num_latents 0 without its factor": (spoil_config(num_latents=0), r"shape \[64, 16\].*\[512, 16\]"),
    "num_latents negative": (spoil_config(num_latents=-64), "num_latents -64"),
    "num_latents false": (spoil_config(num_latents=False), "num_latents False"),
    "expansion_factor text": (spoil_config(num_latents=0, expansion_factor="4"), "expansion_factor '4'"),
    "d_in huge": (spoil_config(d_in=10**30), r"shape \[64, 16\]"),
    "d_in another": (spoil_config(d_in=17), r"encoder\.weight.*\[64, 16\].*\[64, 17\]"),
    "transcode text": (spoil_config(transcode="false"), "transcode 'false'; it must be true or false"),
    "skip said and not there": (spoil_config(skip_connection=True), "W_skip"),
    "skip there and not said": (spoil_weights(W_skip=torch.zeros(16, 16)), "W_skip"),
    "no decoder": (spoil_weights(drop=("W_dec",)), "encoder without W_dec"),
    "no bias": (spoil_weights(drop=("encoder.bias",)), "a topk SAE of format sparsify has"),
    "a tensor too many": (spoil_weights(extra=torch.zeros(2)), "holds .*extra"),
    "decoder transposed": (spoil_weights(W_dec=torch.zeros(16, 64)), r"W_dec .*\[16, 64\].*\[64, 16\]"),
    "bias of another length": (spoil_weights(b_dec=torch.zeros(17)), r"b_dec .*\[17\].*\[16\]"),
    "NaN": (spoil_weights(encoder_bias=torch.full((64,), torch.nan)), "b_enc of SAE .* has NaN or infinity"),
    "infinity": (spoil_weights(W_dec=torch.full((64, 16), torch.inf)), "W_dec of SAE .* has NaN or infinity"),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_folder_is_reported_in_one_sentence(tmp_path: Path, kind: str) -> None:
    spoil, message = SPOILED[kind]
    folder = topk(tmp_path)
    spoil(folder)
    with pytest.raises(InputError, match=message) as error:
        load_sae(str(folder))
    assert "\n" not in str(error.value)


def test_a_folder_of_two_formats_is_reported_by_its_file(tmp_path: Path) -> None:
    folder = topk(tmp_path)
    (folder / "ae.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"could be of several formats .*sparsify.*dictionary_learning"):
        load_sae(str(folder))
    assert load_sae(str(folder / "sae.safetensors")).metadata.format == "sparsify"
