"""Vectors in the residual stream after the last block, turned into logits by the model itself.

Architectures end in many ways (layer or RMS norm, with or without gain folded in; tied, untied or biased
unembedding; a projection before it, scales, a soft-cap after it). None of that is written down here again:
one token is run, what its last block gives is replaced by N vectors, and the model's own end, which treats
every position alike, makes N rows of logits of them.

N vectors, D width of the residual stream, V vocabulary.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from schemas.errors import InputError
from schemas.values import TokenBatch

STREAM = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_embed")
WRITERS = ("hook_mlp_out", "hook_attn_out")
"""Last parts of TransformerLens' hooks: x is the residual stream, or what is added to it (after norms and
scales of the sublayer, where a model has any)."""

BLOCK_OUTPUT = re.compile(r"(.*\.)?(blocks|layers|layer|h)\.\d+(\.hook_(in|out))?")
"""Blocks of TransformerLens and of Hugging Face's models, by the path of the module."""


class Head(NamedTuple):
    """Where the residual stream leaves the last block, and W_U [D, V], as far as the model has one matrix."""

    last: str
    matrix: Tensor | None


def in_residual_stream(hook: str) -> bool:
    """Whether x at the hook is the residual stream or is added to it as it is, by the hook's name.

    Hidden layers and heads (hook_z, hook_post, hook_normalized ...) may be as wide and are something else.
    """
    return hook.rpartition(".")[2] in (*STREAM, *WRITERS) or BLOCK_OUTPUT.fullmatch(hook) is not None


def one_token() -> TokenBatch:
    """A context of the token 0 alone."""
    return TokenBatch(np.zeros((1, 1), dtype=np.int64), np.ones(1, dtype=np.int64))


def replace_block_output(vectors: Tensor, output: object) -> object:
    """What a block gave for one token, with vectors [N, D] in place of its [1, 1, D]."""
    first = output[0] if isinstance(output, tuple) else output
    assert isinstance(first, Tensor)
    assert first.shape[:2] == (1, 1), f"{list(first.shape)} is not a block's output of one token"
    if vectors.shape[1] != first.shape[2]:
        raise InputError(
            f"vectors of {vectors.shape[1]} are not in the residual stream, which is {first.shape[2]} wide: "
            "only an SAE that writes into it has logits"
        )
    # one context of N positions: final norm and unembedding treat each alone, and no block comes after
    put = vectors.to(first.device, first.dtype)[None]
    return (put, *output[1:]) if isinstance(output, tuple) else put


def rows_of_logits(output: Any, n: int) -> Tensor:
    """Logits [N, V] in what the model returned, whichever of its axes now counts the vectors."""
    logits = getattr(output, "logits", output[0] if isinstance(output, tuple) and output else output)
    if not isinstance(logits, Tensor) or logits.ndim < 2 or logits.numel() != n * logits.shape[-1]:
        raise InputError(
            "the end of this model (final norm and unembedding) cannot be run on its own: `latentlake "
            "logits` needs a causal language model with its head"
        )
    # the axes before the vocabulary may be [1, N] or [N]: together they count the vectors
    return logits.reshape(n, logits.shape[-1])


def select_rows(output: object, rows: Tensor) -> object:
    """What a block gave for a batch [B, T, D], as if for one context of some of its rows, int64 [n]."""
    first = output[0] if isinstance(output, tuple) else output
    assert isinstance(first, Tensor)
    put = first.flatten(0, 1).index_select(0, rows)[None]
    return (put, *output[1:]) if isinstance(output, tuple) else put


def is_same(own: Tensor, other: Tensor) -> bool:
    """Whether logits made in another way are the model's own, but for rounding."""
    # of the largest logit: small ones are differences of large sums, and may lose all of their digits
    allowed = 1e-3 if own.dtype == torch.float32 else 0.1
    return own.shape == other.shape and float((own - other).abs().max()) <= allowed * float(own.abs().max())


def require_same(own: Tensor, other: Tensor) -> None:
    """The model's logits of some tokens, and those made of what its last block gave for them."""
    if not is_same(own, other):
        raise InputError(
            "the output of this model's last block does not determine its logits (something else enters "
            "after it), so features have no logits of their own: `latentlake logits` cannot be used with it"
        )
