"""Logits of vectors are transformers' own lm_head(norm(x)), with all that an architecture puts around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.models import load_model
from pipeline.models.hooks.unembedding import in_residual_stream
from schemas.errors import InputError
from schemas.names import PROCESSING
from schemas.run.file import Model
from tests.kit import (
    D_MODEL,
    WORDS_VOCAB,
    _write_model,
    write_tiny_bert,
    write_tiny_gpt2,
    write_tiny_llama,
)
from tests.models.reference import TRANSFORMER_LENS_4, causal_model, load

ALL = dict.fromkeys(PROCESSING[:4], True)
old = pytest.mark.skipif(TRANSFORMER_LENS_4, reason="transformer-lens 4 has no HookedTransformer")
SHAPE = {"hidden_size": D_MODEL, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VOCABULARY = {"vocab_size": WORDS_VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


def write_untied_llama(folder: Path) -> Path:
    """Like `write_tiny_llama`, whose head is its own in any case."""
    return write_tiny_llama(folder, layers=2)


def write_tied_llama(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SHAPE, **VOCABULARY, max_position_embeddings=64, tie_word_embeddings=True)
    return _write_model(folder, LlamaForCausalLM, config, 0)


def write_gemma2(folder: Path) -> Path:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        **SHAPE, **VOCABULARY, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0
    )
    return _write_model(folder, Gemma2ForCausalLM, config, 0)


def write_neox(folder: Path) -> Path:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return _write_model(folder, GPTNeoXForCausalLM, GPTNeoXConfig(**SHAPE, **VOCABULARY), 0)


def write_granite(folder: Path) -> Path:
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(**SHAPE, **VOCABULARY, num_key_value_heads=1, logits_scaling=4.0)
    return _write_model(folder, GraniteForCausalLM, config, 0)


def after_gpt2(model: Any, x: torch.Tensor) -> torch.Tensor:
    return model.lm_head(model.transformer.ln_f(x))


def after_llama(model: Any, x: torch.Tensor) -> torch.Tensor:
    return model.lm_head(model.model.norm(x))


def after_gemma2(model: Any, x: torch.Tensor) -> torch.Tensor:
    return 2.0 * torch.tanh(model.lm_head(model.model.norm(x)) / 2.0)


def after_neox(model: Any, x: torch.Tensor) -> torch.Tensor:
    return model.get_output_embeddings()(model.gpt_neox.final_layer_norm(x))


def after_granite(model: Any, x: torch.Tensor) -> torch.Tensor:
    return 0.25 * model.lm_head(model.model.norm(x))


FAMILIES: dict[str, tuple[Callable[[Path], Path], Callable[[Any, torch.Tensor], torch.Tensor]]] = {
    "gpt2": (write_tiny_gpt2, after_gpt2),
    "llama": (write_untied_llama, after_llama),
    "tied llama": (write_tied_llama, after_llama),
    "gemma2": (write_gemma2, after_gemma2),
    "gpt_neox": (write_neox, after_neox),
    "granite": (write_granite, after_granite),
}


def vectors(n: int = 30) -> torch.Tensor:
    return 3 * torch.randn(n, D_MODEL, generator=torch.Generator().manual_seed(1)) + 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_transformers_own_after_norm_and_head(tmp_path: Path, family: str) -> None:
    write, after = FAMILIES[family]
    reference = causal_model(write(tmp_path))
    with torch.no_grad():
        expected = after(reference, vectors())
    result = load(tmp_path).unembed(vectors())
    assert (result.dtype, result.shape) == (torch.float32, (30, WORDS_VOCAB))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loader", ["transformer_lens", pytest.param("hooked_transformer", marks=old)])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_processing_moves_logits_by_a_constant_of_each_row_at_most(
    tmp_path: Path, family: str, loader: str
) -> None:
    """Folding keeps what the model computes, centring the unembedding shifts each row of logits."""
    write, after = FAMILIES[family]
    reference = causal_model(write(tmp_path))
    x = vectors() - vectors().mean(1, keepdim=True)  # a layer norm folded in leaves the centring to x
    with torch.no_grad():
        expected = after(reference, x).log_softmax(1)
    model = load(tmp_path, loader=loader, processing=ALL)
    torch.testing.assert_close(model.unembed(x).log_softmax(1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_are_products_with_the_unembedding_about_their_mean(tmp_path: Path, family: str) -> None:
    reference = causal_model(FAMILIES[family][0](tmp_path))
    with torch.no_grad():
        effects = vectors() @ reference.get_output_embeddings().weight.T
    result = load(tmp_path).logit_effects(vectors())
    torch.testing.assert_close(result, effects - effects.mean(1, keepdim=True), rtol=1e-4, atol=1e-4)


def test_with_a_folded_norm_its_gain_is_in_the_effects(tmp_path: Path) -> None:
    reference = causal_model(write_tiny_llama(tmp_path))
    with torch.no_grad():
        effects = (vectors() * reference.model.norm.weight) @ reference.lm_head.weight.T
    result = load(tmp_path, processing={"fold_ln": True}).logit_effects(vectors())
    torch.testing.assert_close(result, effects - effects.mean(1, keepdim=True), rtol=1e-4, atol=1e-4)


def test_a_model_in_half_precision_unembeds_in_it(tmp_path: Path) -> None:
    model = load(write_tiny_gpt2(tmp_path), dtype="bfloat16")
    reference = causal_model(tmp_path, torch.bfloat16)
    with torch.no_grad():
        expected = after_gpt2(reference, vectors().bfloat16()).float()
    torch.testing.assert_close(model.unembed(vectors()), expected, rtol=0.02, atol=0.02)


def test_models_without_an_unembedding_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no unembedding was found"):
        load(write_tiny_bert(tmp_path / "bert")).unembed(vectors())
    causal_model(write_tiny_llama(tmp_path / "headless")).model.save_pretrained(tmp_path / "headless")
    with pytest.raises(InputError, match="no unembedding was found"):
        load(tmp_path / "headless").unembed(vectors())
    module = load_model(Model(loader="torch_module", path="tests.kit:tiny_lm"), [], "cpu", 1)
    with pytest.raises(InputError, match="no unembedding was found"):
        module.logit_effects(vectors())


@pytest.mark.parametrize(
    ("hook", "is_in"),
    [
        ("blocks.9.hook_resid_post", True),
        ("blocks.6.hook_mlp_out", True),
        ("hook_embed", True),
        ("model.layers.9", True),
        ("transformer.h.0", True),
        ("blocks.3.hook_out", True),
        ("blocks.3.attn.hook_z", False),
        ("blocks.3.mlp.hook_post", False),
        ("blocks.3.ln2.hook_normalized", False),
        ("blocks.3.hook_mlp_in", False),
        ("model.layers.9.mlp", False),
        ("layers.1.linear", False),
    ],
)
def test_whether_a_hook_is_in_the_residual_stream(hook: str, is_in: bool) -> None:
    assert in_residual_stream(hook) == is_in
