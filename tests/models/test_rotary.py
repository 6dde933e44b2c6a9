"""A row depends on its context alone, also where rotary positions are chosen by a batch's longest context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.models import load_model
from pipeline.models.loaders.rotary import by_context
from schemas.errors import InputError
from schemas.names import Loader
from schemas.run.file import Model
from schemas.values import TokenBatch
from tests.models.reference import TRANSFORMER_LENS_4, causal_model, each_alone, load, losses_of, make_batch
from tests.models.test_agreement import SHAPE, writer

HOOKS = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
BORDER = 8
"""Longest context with the short frequencies: of `make_batch` the first is longer, the others are not."""

LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 8.0, 16.0, 32.0],
    "original_max_position_embeddings": BORDER,
    "rope_theta": 10000.0,
}


def write_longrope(folder: Path, name: str = "Llama", **changes: Any) -> Path:
    extra = {"pad_token_id": 0} if name == "Phi3" else {}
    rope = {**LONGROPE, **changes}
    return writer(name, rope_parameters=rope, **extra)(folder)


def alone(folder: Path, batch: TokenBatch) -> list[torch.Tensor]:
    """Hidden states of transformers' own model, each context by itself."""
    model = causal_model(folder)

    def states(layer: int) -> torch.Tensor:
        return each_alone(batch, lambda ids: model(ids, output_hidden_states=True).hidden_states[layer][0])

    return [states(0), states(2)]


def in_batches(model: Any, batch: TokenBatch, size: int) -> torch.Tensor:
    """X of the second hook, in batches of so many contexts, each as wide as its longest."""
    parts = []
    for first in range(0, len(batch.lengths), size):
        lengths = batch.lengths[first : first + size]
        ids = batch.token_ids[first : first + size, : lengths.max()]
        parts.append(model.forward(TokenBatch(ids, lengths))[HOOKS[1]])
    return torch.cat(parts)


@pytest.mark.parametrize("family", ["Llama", "Phi3"])
def test_a_context_gives_in_any_batch_what_it_gives_alone(tmp_path: Path, family: str) -> None:
    folder, batch = write_longrope(tmp_path, family), make_batch()
    model = load(folder, *HOOKS)
    result, expected = model.forward(batch), alone(folder, batch)
    for hook, x in zip(HOOKS, expected, strict=False):
        torch.testing.assert_close(result[hook], x, rtol=1e-4, atol=1e-5)
    for size in (1, 2, 3):
        torch.testing.assert_close(in_batches(model, batch, size), expected[1], rtol=1e-4, atol=1e-5)


def test_the_border_is_a_context_s_own_length_and_pads_do_not_move_it(tmp_path: Path) -> None:
    folder = write_longrope(tmp_path)
    batch = make_batch(np.array([BORDER + 1, BORDER, 1]), 12)  # wider than any of its contexts
    result = load(folder, *HOOKS).forward(batch)[HOOKS[1]]
    torch.testing.assert_close(result, alone(folder, batch)[1], rtol=1e-4, atol=1e-5)
    short = make_batch(np.array([BORDER, 3]), 12)
    result = load(folder, *HOOKS).forward(short)[HOOKS[1]]
    torch.testing.assert_close(result, alone(folder, short)[1], rtol=1e-4, atol=1e-5)


def test_transformers_itself_mixes_them(tmp_path: Path) -> None:
    folder, batch = write_longrope(tmp_path), make_batch()
    model, ids = causal_model(folder), torch.from_numpy(batch.token_ids)
    with torch.no_grad():
        mixed = model(ids, output_hidden_states=True).hidden_states[2][2, :3]
    assert (mixed - alone(folder, batch)[1][-3:]).abs().max() > 1e-3


def test_losses_and_passes_that_begin_at_a_hook_are_those_of_each_context(tmp_path: Path) -> None:
    folder, batch = write_longrope(tmp_path), make_batch()
    model = load(folder, HOOKS[1])
    torch.testing.assert_close(
        model.losses(batch), losses_of(causal_model(folder), batch), rtol=1e-4, atol=1e-4
    )
    ends = np.cumsum(batch.lengths) - 1
    begun = model.begin(batch, ends, np.zeros(3, np.int64))
    assert begun.calls is not None
    some = np.array([2, 0])
    few = TokenBatch(batch.token_ids[some], batch.lengths[some])
    twice = {HOOKS[1]: lambda x: 2 * x}
    at = np.cumsum(few.lengths) - 1
    torch.testing.assert_close(
        model.logits_at(few, at, twice, begun=begun.again(some)), model.logits_at(few, at, twice)
    )
    separate = [
        load(folder, HOOKS[1]).logits_at(
            TokenBatch(few.token_ids[n : n + 1, :length], few.lengths[n : n + 1]),
            np.array([length - 1]),
            twice,
        )
        for n, length in enumerate(few.lengths)
    ]
    torch.testing.assert_close(model.logits_at(few, at, twice), torch.cat(separate), rtol=1e-4, atol=1e-4)


def build() -> torch.nn.Module:
    """A module of the user that is a model of transformers, in the folder that FOLDER names."""
    return causal_model(FOLDER[0])  # type: ignore[no-any-return]


FOLDER: list[Path] = []


def test_a_module_of_the_user_with_these_positions_is_treated_alike(tmp_path: Path) -> None:
    folder, batch = write_longrope(tmp_path), make_batch()
    FOLDER[:] = [folder]
    module = Model(loader="torch_module", path="tests.models.test_rotary:build")
    result = load_model(module, ["model.layers.1"], "cpu", 1).forward(batch)["model.layers.1"]
    torch.testing.assert_close(result, alone(folder, batch)[1], rtol=1e-4, atol=1e-5)


def test_with_dynamic_positions_a_context_of_another_scale_is_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    folder = writer("Llama", rope_parameters=rope, max_position_embeddings=BORDER)(tmp_path)
    FOLDER[:] = [folder]
    module = Model(loader="torch_module", path="tests.models.test_rotary:build")
    loaded = load_model(module, ["model.layers.1"], "cpu", 1)
    short = make_batch(np.array([BORDER, 3]), BORDER)
    torch.testing.assert_close(
        loaded.forward(short)["model.layers.1"], alone(folder, short)[1], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(
        InputError, match=r"of 10 tokens is longer than 8, .*rope_type: dynamic.*lower tokens"
    ):
        loaded.forward(make_batch())
    with pytest.raises(InputError, match=r"longer than the model's 8: lower tokens\.context_size"):
        load(folder, HOOKS[1]).forward(make_batch())


@pytest.mark.skipif(TRANSFORMER_LENS_4, reason="transformer-lens 4 has no HookedTransformer")
def test_a_loader_that_does_not_know_the_long_frequencies_refuses(tmp_path: Path) -> None:
    loader: Loader = "hooked_transformer"
    with pytest.raises(InputError, match=r"rope_type: longrope.*set model\.loader: transformer_lens"):
        load(write_longrope(tmp_path), HOOKS[1], loader=loader)


def test_experts_with_room_for_some_tokens_of_a_batch_are_refused() -> None:
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "num_experts": 2}
    config = SwitchTransformersConfig(**shape, vocab_size=SHAPE["vocab_size"])
    with pytest.raises(InputError, match=r"model m has experts with room for 64 tokens of a batch"):
        by_context(SwitchTransformersForConditionalGeneration(config), "m")
