"""Weight processing gives HookedTransformer's x, by the bridge and by the class itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from schemas.errors import InputError
from schemas.names import PROCESSING
from schemas.run.file import Model
from tests.kit import D_MODEL, write_tiny_gpt2, write_tiny_llama
from tests.models.reference import TRANSFORMER_LENS_4, causal_model, load, losses_of, make_batch

WRITERS = {"gpt2": write_tiny_gpt2, "llama": write_tiny_llama}
ALL = dict.fromkeys(PROCESSING[:4], True)
HOOKS = [
    "hook_embed",
    "blocks.0.hook_resid_pre",
    "blocks.0.ln1.hook_normalized",
    "blocks.1.attn.hook_z",
    "blocks.1.hook_attn_out",
    "blocks.1.hook_mlp_in",
    "blocks.1.hook_resid_mid",
    "blocks.1.ln2.hook_normalized",
    "blocks.1.mlp.hook_post",
    "blocks.1.hook_mlp_out",
    "blocks.2.hook_resid_post",
]
old = pytest.mark.skipif(TRANSFORMER_LENS_4, reason="transformer-lens 4 has no HookedTransformer")


@pytest.fixture(scope="module", params=WRITERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp("model") / request.param)


@old
@pytest.mark.parametrize("processing", [{}, *({name: True} for name in PROCESSING[:4]), ALL])
def test_the_bridge_and_hooked_transformer_agree_at_every_kind_of_hook(
    folder: Path, processing: dict[str, bool]
) -> None:
    bridge = load(folder, *HOOKS, processing=processing)
    hooked = load(folder, *HOOKS, processing=processing, loader="hooked_transformer")
    assert bridge.widths == hooked.widths
    expected = hooked.forward(make_batch())
    for hook, x in bridge.forward(make_batch()).items():
        torch.testing.assert_close(x, expected[hook], rtol=1e-4, atol=1e-4, msg=lambda m, h=hook: f"{h}: {m}")
    torch.testing.assert_close(bridge.losses(make_batch()), hooked.losses(make_batch()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loader", ["transformer_lens", pytest.param("hooked_transformer", marks=old)])
@pytest.mark.parametrize("processing", [{}, ALL])
def test_processing_leaves_the_losses_that_transformers_has(
    folder: Path, loader: str, processing: dict[str, bool]
) -> None:
    result = load(folder, "blocks.1.hook_resid_post", processing=processing, loader=loader).losses(
        make_batch()
    )
    expected = losses_of(causal_model(folder), make_batch())
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_centred_weights_write_a_residual_stream_of_mean_zero(tmp_path: Path) -> None:
    """The formula itself, so that both versions of the library are held to it."""
    write_tiny_gpt2(tmp_path)
    hook = "blocks.1.hook_resid_post"
    plain = load(tmp_path, hook).forward(make_batch())[hook]
    processing = {"center_writing_weights": True}
    centred = load(tmp_path, hook, processing=processing).forward(make_batch())[hook]
    assert plain.mean(1).abs().max() > 0.05
    torch.testing.assert_close(centred, plain - plain.mean(1, keepdim=True), rtol=1e-4, atol=1e-4)


def test_folded_norms_give_x_without_their_gain(tmp_path: Path) -> None:
    """The next layer's weights hold gain and shift then: hook_normalized stays as it is."""
    write_tiny_gpt2(tmp_path)
    hooks = ["blocks.1.ln2.hook_normalized", "blocks.1.ln2.hook_out"]
    plain, folded = (
        load(tmp_path, *hooks, processing=p).forward(make_batch()) for p in ({}, {"fold_ln": True})
    )
    norm = causal_model(tmp_path).transformer.h[1].ln_2
    torch.testing.assert_close(plain[hooks[1]], plain[hooks[0]] * norm.weight.data + norm.bias.data)
    torch.testing.assert_close(folded[hooks[0]], plain[hooks[0]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded[hooks[1]], folded[hooks[0]])


def test_folded_value_biases_leave_the_heads(tmp_path: Path) -> None:
    write_tiny_gpt2(tmp_path)
    hook, processing = "blocks.1.attn.hook_z", {"fold_value_biases": True}
    plain, folded = (load(tmp_path, hook, processing=p).forward(make_batch())[hook] for p in ({}, processing))
    bias = causal_model(tmp_path).transformer.h[1].attn.c_attn.bias.data[2 * D_MODEL :]
    torch.testing.assert_close(folded, plain - bias, rtol=1e-4, atol=1e-4)


@old
def test_x_can_be_replaced_in_a_hooked_transformer_at_the_middle_of_a_block_too(folder: Path) -> None:
    model = load(folder, "blocks.1.hook_resid_mid", loader="hooked_transformer")
    plain = model.losses(make_batch())
    assert torch.equal(model.losses(make_batch(), {"blocks.1.hook_resid_mid": lambda x: x}), plain)
    zeros = model.losses(make_batch(), {"blocks.1.hook_resid_mid": torch.zeros_like})
    reference = causal_model(folder)
    block = (reference.transformer.h if folder.name == "gpt2" else reference.model.layers)[1]
    norm, mlp = (
        (block.ln_2, block.mlp) if folder.name == "gpt2" else (block.post_attention_layernorm, block.mlp)
    )
    block.register_forward_hook(
        lambda _m, inputs, _out: mlp(norm(torch.zeros_like(inputs[0]))) if inputs else None
    )
    torch.testing.assert_close(zeros, losses_of(reference, make_batch()), rtol=1e-4, atol=1e-4)


@old
def test_a_folder_named_like_another_model_is_read_by_its_configuration(tmp_path: Path) -> None:
    folder = write_tiny_gpt2(tmp_path / "llama-bert-t5")
    hook = "blocks.1.hook_resid_post"
    expected = load(folder, hook).forward(make_batch())[hook]
    result = load(folder, hook, loader="hooked_transformer")
    assert result.max_context == 64
    torch.testing.assert_close(result.forward(make_batch())[hook], expected, rtol=1e-4, atol=1e-5)


@old
def test_hooked_transformer_refuses_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        load(tmp_path, "blocks.0.hook_resid_post", loader="hooked_transformer")
    folder = write_tiny_gpt2(tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"no hook 'transformer\.h\.0'; near"):
        load(folder, "transformer.h.0", loader="hooked_transformer")
    with pytest.raises(
        InputError,
        match=r"no/such is not a folder here, and the hub does not provide it \(.*\): check the name",
    ):
        load(Path("no/such"), "blocks.0.hook_resid_post", loader="hooked_transformer")


@old
def test_settings_that_a_model_does_not_take_are_named(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path)
    with pytest.raises(InputError, match=r"blocks\.1\.hook_attn_in fires only with .* setting use_attn_in"):
        load(folder, "blocks.1.hook_attn_in", loader="hooked_transformer")


@pytest.mark.skipif(not TRANSFORMER_LENS_4, reason="transformer-lens 3 has HookedTransformer")
def test_without_hooked_transformer_the_way_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"needs transformer-lens 3, but 4\..* is installed: set model\.loader: transformer_lens",
    ):
        load(write_tiny_gpt2(tmp_path), "blocks.0.hook_resid_post", loader="hooked_transformer")


def test_processing_is_refused_where_it_means_nothing() -> None:
    with pytest.raises(InputError, match=r"model\.processing \(fold_ln\) is a TransformerLens setting"):
        load(Path("tests.kit:tiny_lm"), "embed", loader="torch_module", processing={"fold_ln": True})
    with pytest.raises(ValidationError, match=re.escape("unknown: fold_lm; known: fold_ln, center_writing")):
        Model(path="x", processing={"fold_lm": True})


def test_processing_that_is_not_possible_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("this adapter does not support compatibility mode")

    monkeypatch.setattr(TransformerBridge, "enable_compatibility_mode", refuse)
    with pytest.raises(InputError, match=r"model\.processing \(fold_ln\) is not possible .*does not support"):
        load(folder, "blocks.0.hook_resid_post", processing={"fold_ln": True})
