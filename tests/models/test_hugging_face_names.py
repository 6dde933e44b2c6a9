"""Hooks may be named by Hugging Face's own module paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.errors import InputError
from tests.kit import write_tiny_llama
from tests.models.reference import causal_model, each_alone, load, losses_of, make_batch

PATHS = [
    "model.embed_tokens",
    "model.layers.0.self_attn",
    "model.layers.1",
    "model.layers.1.mlp",
    "model.layers.1.mlp.up_proj",
    "model.layers.1.input_layernorm",
    "model.norm",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("model"))


def output_of(model: Any, path: str) -> torch.Tensor:
    """What transformers' own module gives."""
    seen: list[torch.Tensor] = []
    module = model.get_submodule(path)
    handle = module.register_forward_hook(
        lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )

    def run(ids: torch.Tensor) -> torch.Tensor:
        model(ids)
        return seen.pop()[0]

    try:
        return each_alone(make_batch(), run)
    finally:
        handle.remove()


def test_x_is_what_the_module_gives_in_transformers(folder: Path) -> None:
    model, reference = load(folder, *PATHS), causal_model(folder)
    result = model.forward(make_batch())
    assert list(result) == PATHS
    for path in PATHS:
        torch.testing.assert_close(result[path], output_of(reference, path), rtol=1e-4, atol=1e-5)


def test_both_kinds_of_names_share_a_pass(folder: Path) -> None:
    result = load(folder, "model.layers.1", "blocks.1.hook_resid_post").forward(make_batch())
    assert torch.equal(result["model.layers.1"], result["blocks.1.hook_resid_post"])


@pytest.mark.parametrize("path", ["model.layers.0.self_attn", "model.layers.1", "model.layers.1.mlp"])
def test_x_can_be_replaced_there(folder: Path, path: str) -> None:
    def put(_module: Any, _inputs: Any, output: Any) -> Any:
        return (-output[0], *output[1:]) if isinstance(output, tuple) else -output

    model, reference = load(folder, "model.layers.1"), causal_model(folder)
    reference.get_submodule(path).register_forward_hook(put)
    result = model.losses(make_batch(), {path: torch.neg})
    torch.testing.assert_close(result, losses_of(reference, make_batch()), rtol=1e-4, atol=1e-5)


def test_a_path_that_is_near_one_is_helped(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no hook 'model\.layer\.1\.mlp'; near: .*model\.layers\.1\.mlp"):
        load(folder, "model.layer.1.mlp")
