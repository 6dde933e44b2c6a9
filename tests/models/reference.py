"""What the tests of models share: batches, loading, and transformers' own models run by hand."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from pipeline.models import load_model
from schemas.run.file import Model
from schemas.values import TokenBatch

LENGTHS = np.array([10, 7, 3])

SILENT = {"gpt2": "blocks.0.attn.qkv.hook_out", "llama": "rotary_emb.hook_out"}
"""Hooks of the tiny models that the bridge's forward pass does not visit."""

TRANSFORMER_LENS_4 = importlib.metadata.version("transformer-lens").startswith("4.")


def make_batch(lengths: NDArray[Any] = LENGTHS, width: int = 10) -> TokenBatch:
    """Random contexts of the tiny models' vocabulary, padded with 0 on the right."""
    token_ids = np.random.default_rng(0).integers(3, 60, (len(lengths), width))
    return TokenBatch(np.where(np.arange(width) < lengths[:, None], token_ids, 0), lengths)


def load(folder: Path, *hooks: str, device: str = "cpu", **settings: Any) -> Any:
    """A model loaded for some hooks."""
    return load_model(Model(path=str(folder), **settings), hooks, device, 1)


def causal_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' own causal model of the folder, with eager attention."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def each_alone(batch: TokenBatch, run: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """What `run` gives for ids int64 [1, T] of each context alone, without its pads, put below each other."""
    with torch.no_grad():
        return torch.cat(
            [
                run(torch.from_numpy(ids[None, :length]))
                for ids, length in zip(batch.token_ids, batch.lengths, strict=True)
            ]
        )


def losses_of(model: Any, batch: TokenBatch) -> torch.Tensor:
    """Cross-entropy of each next token under a model of transformers."""
    return each_alone(
        batch, lambda ids: cross_entropy(model(ids).logits[0, :-1].float(), ids[0, 1:], reduction="none")
    )
