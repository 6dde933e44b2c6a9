"""Encoders attend to both sides, and never to pads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from schemas.errors import InputError
from schemas.values import TokenBatch
from tests.kit import D_MODEL, write_tiny_bert, write_tiny_tokenizer
from tests.models.reference import each_alone, load, make_batch

HOOKS = [f"blocks.{n}.hook_resid_post" for n in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bert"))


def hidden_states(folder: Path, layer: int) -> torch.Tensor:
    from transformers import BertModel

    bert: Any = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    return each_alone(make_batch(), lambda ids: bert(ids, output_hidden_states=True).hidden_states[layer][0])


def test_an_encoder_without_a_head_gives_the_hidden_states_of_transformers(folder: Path) -> None:
    result = load(folder, *HOOKS).forward(make_batch())
    for layer, hook in enumerate(HOOKS, 1):
        torch.testing.assert_close(result[hook], hidden_states(folder, layer), rtol=1e-4, atol=1e-5)


def test_pads_are_not_attended_to_whatever_stands_there(folder: Path) -> None:
    model, batch = load(folder, HOOKS[2]), make_batch()
    real = np.arange(10) < batch.lengths[:, None]
    other = TokenBatch(np.where(real, batch.token_ids, 9), batch.lengths)
    result = model.forward(batch)[HOOKS[2]]
    assert torch.equal(model.forward(other)[HOOKS[2]], result)
    alone = model.forward(TokenBatch(batch.token_ids[1:2, :7], np.array([7])))[HOOKS[2]]
    torch.testing.assert_close(result[10:17], alone, rtol=1e-4, atol=1e-5)


def test_a_token_sees_what_follows_it(folder: Path) -> None:
    model, ids = load(folder, HOOKS[0]), make_batch(np.array([6]), 6).token_ids
    changed = ids.copy()
    changed[0, -1] = 61
    first, other = (model.forward(TokenBatch(i, np.array([6])))[HOOKS[0]] for i in (ids, changed))
    assert first.shape == (6, D_MODEL)
    assert (first[0] - other[0]).abs().max() > 1e-3


def test_an_architecture_that_transformer_lens_does_not_know_is_refused_in_a_sentence(tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(vocab_size=64, dim=16, n_layers=2, n_heads=2, hidden_dim=32)
    DistilBertModel(config).save_pretrained(write_tiny_tokenizer(tmp_path))
    with pytest.raises(InputError, match=r"cannot be loaded by transformer_lens .*torch_module") as message:
        load(tmp_path, HOOKS[0])
    assert len(str(message.value)) < 500
