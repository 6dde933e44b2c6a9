"""A model that is run through other code must compute what transformers' own model does, or be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.models.loaders.agreement import BOUNDS, Plain, compare, require_agreement
from pipeline.monitor.events import read_events
from schemas.errors import InputError
from schemas.names import Loader
from schemas.values import Agreement
from tests.fixtures.runs import extracted, run_file
from tests.kit import (
    D_MODEL,
    WORDS_VOCAB,
    _write_model,
    write_sae,
    write_tiny_bert,
    write_tiny_gpt2,
    write_tiny_llama,
)
from tests.models.reference import TRANSFORMER_LENS_4, load, make_batch
from tests.models.test_model_files import write_tiny_neox

HOOKS = (
    "blocks.0.hook_resid_pre",
    "blocks.1.hook_resid_post",
    "blocks.1.hook_attn_out",
    "blocks.1.hook_mlp_out",
)
SHAPE: dict[str, Any] = {
    "hidden_size": D_MODEL,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "vocab_size": WORDS_VOCAB,
}
OLD: list[Loader] = [] if TRANSFORMER_LENS_4 else ["hooked_transformer"]


def writer(name: str, **settings: Any) -> Callable[[Path], Path]:
    """Writes a tiny model of a family of transformers."""

    def write(folder: Path) -> Path:
        import transformers

        config = getattr(transformers, f"{name}Config")(**{**SHAPE, **settings})
        return _write_model(folder, getattr(transformers, f"{name}ForCausalLM"), config, 0)

    return write


ALIKE: dict[str, Callable[[Path], Path]] = {
    "llama": write_tiny_llama,
    "gpt2": write_tiny_gpt2,
    "neox": write_tiny_neox,
    "bert": write_tiny_bert,
    "gemma2": writer("Gemma2", head_dim=8, query_pre_attn_scalar=8),
    "qwen2": writer("Qwen2"),
}
OTHER = {"cohere": writer("Cohere"), "cohere2": writer("Cohere2")}


@pytest.mark.parametrize("family", ALIKE)
def test_what_the_bridge_runs_agrees_with_transformers(tmp_path: Path, family: str) -> None:
    agreement = load(ALIKE[family](tmp_path), *HOOKS).agreement
    assert list(agreement.differences) == [*HOOKS, "logits"]
    assert max(agreement.differences.values()) < 1e-5
    assert agreement.unchecked == ()


@pytest.mark.skipif(TRANSFORMER_LENS_4, reason="the rotary positions of transformer-lens 3.9 are others")
@pytest.mark.parametrize("family", OTHER)
def test_a_bridge_that_computes_another_function_is_refused_with_the_numbers(
    tmp_path: Path, family: str
) -> None:
    folder = OTHER[family](tmp_path)
    with pytest.raises(InputError) as refused:
        load(folder, "blocks.0.hook_resid_pre", "blocks.2.hook_resid_post")
    sentence = str(refused.value)
    assert (
        f"model {folder} computes something different under model.loader: transformer_lens "
        "(transformer-lens 3." in (sentence)
    )
    assert " at blocks.2.hook_resid_post, " in sentence
    assert "at blocks.0.hook_resid_pre" not in sentence
    assert sentence.endswith(
        "where 1e-04 is allowed in float32: build the model in a function and set model.loader: torch_module"
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_agrees_within_its_bound(tmp_path: Path, dtype: str) -> None:
    agreement = load(write_tiny_gpt2(tmp_path), *HOOKS, dtype=dtype).agreement
    assert max(agreement.differences.values()) < BOUNDS[getattr(torch, dtype)]
    assert agreement.unchecked == ()


@pytest.mark.parametrize("loader", OLD)
@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "qwen2"])
def test_a_hooked_transformer_is_compared_with_what_it_was_converted_from(
    tmp_path: Path, family: str, loader: Loader
) -> None:
    agreement = load(ALIKE[family](tmp_path), *HOOKS[:3], loader=loader).agreement
    assert list(agreement.differences) == [*HOOKS[:2], "logits"]
    assert max(agreement.differences.values()) < 1e-4
    assert agreement.unchecked == ("blocks.1.hook_attn_out",)


@pytest.mark.parametrize("loader", OLD)
def test_a_conversion_that_leaves_something_out_is_refused(tmp_path: Path, loader: Loader) -> None:
    folder = writer("Llama", rope_scaling={"rope_type": "linear", "factor": 8.0})(tmp_path)
    with pytest.raises(
        InputError, match=r"under model\.loader: hooked_transformer .* at logits, where 1e-04"
    ):
        load(folder, "blocks.2.hook_resid_post", loader=loader)


WINDOWS = {"sliding_window": 20, "use_sliding_window": True, "max_window_layers": 1}


@pytest.mark.parametrize("loader", OLD)
@pytest.mark.parametrize(
    ("family", "settings", "longest"),
    [("Qwen2", WINDOWS, 20), ("Qwen2", {}, 64), ("Mistral", {"sliding_window": 20}, 64), ("Llama", {}, 64)],
)
def test_contexts_longer_than_an_attention_window_that_a_conversion_lacks_are_refused(
    tmp_path: Path, family: str, settings: dict[str, Any], longest: int, loader: Loader
) -> None:
    model = load(writer(family, **settings)(tmp_path), HOOKS[1], loader=loader)
    assert model.max_context == longest


@pytest.mark.parametrize("loader", ["transformer_lens", *OLD])
def test_processed_weights_are_compared_before_they_are_processed(tmp_path: Path, loader: Loader) -> None:
    folder = write_tiny_gpt2(tmp_path)
    processing = {"fold_ln": True, "center_writing_weights": True, "center_unembed": True}
    model = load(folder, HOOKS[1], loader=loader, processing=processing)
    assert max(model.agreement.differences.values()) < 1e-4
    plain = load(folder, HOOKS[1], loader=loader)
    assert not torch.allclose(model.forward(make_batch())[HOOKS[1]], plain.forward(make_batch())[HOOKS[1]])


def test_hooks_within_a_module_are_named_as_unchecked(tmp_path: Path) -> None:
    agreement = load(
        write_tiny_gpt2(tmp_path), "blocks.1.ln1.hook_normalized", "transformer.h.1.mlp"
    ).agreement
    assert agreement.unchecked == ("blocks.1.ln1.hook_normalized",)
    assert list(agreement.differences) == ["transformer.h.1.mlp", "logits"]


def a_plain(x: torch.Tensor) -> Plain:
    ids = torch.zeros(x.shape[:2], dtype=torch.long)
    return Plain(ids, torch.ones_like(ids), torch.float32, logits=x.flatten(0, 1))


def difference(own: torch.Tensor, plain: torch.Tensor) -> Agreement:
    return compare(a_plain(plain), [], lambda hook: None, lambda name, take: lambda: None, lambda i, m: own)


def test_a_token_of_huge_norm_does_not_hide_the_others() -> None:
    x = torch.ones(1, 4, 3)
    x[0, 0] *= 1e6
    other = x.clone()
    other[0, 1:] *= 2
    assert difference(other, x).differences["logits"] == pytest.approx((3 / 4) ** 0.5)
    assert difference(x, x).differences == {"logits": 0.0}


def test_numbers_that_are_none_are_no_agreement() -> None:
    x = torch.ones(1, 4, 3)
    with pytest.raises(InputError, match="nan at logits"):
        require_agreement(difference(x * float("nan"), x), torch.float32, "m", "transformer_lens")
    assert difference(x, x * float("nan")).unchecked == ("logits",)


def test_the_difference_is_in_the_event_log(tmp_path: Path) -> None:
    sae = write_sae(tmp_path / "sae", "topk", hook_name=HOOKS[1])
    model = {"loader": "transformer_lens", "path": str(write_tiny_gpt2(tmp_path / "gpt2"))}
    sites = [{"name": "mid", "sae": str(sae), "hook_name": HOOKS[1]}]
    store = extracted(run_file(tmp_path, model=model, sites=sites), tables=False)
    (ready,) = (event for event in read_events(store.layout, "mid") if event["event"] == "ready")
    assert list(ready["agreement"]["differences"]) == [HOOKS[1], "logits"]
    assert max(ready["agreement"]["differences"].values()) < 1e-5
    assert ready["agreement"]["unchecked"] == []
