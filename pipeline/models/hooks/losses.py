"""Losses of next-token prediction.

B contexts, T positions, V vocabulary, N' real tokens whose successor in their context is real too.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from pipeline.models.device import to_device
from schemas.errors import InputError
from schemas.values import I64, Bool, TokenBatch

BLOCK = 1 << 25
"""Logits made float32 at a time (128 MiB): all of them at once may be more than the model."""


def next_token_losses(output: object, batch: TokenBatch, device: torch.device) -> Tensor:
    """-ln p(next token), float32 [N'] in (context, position) order, from what a model returned.

    That is its logits [B, T, V], alone, first in a tuple, or as `.logits`. Log-softmax is in float32.
    """
    logits = _logits(output, batch).flatten(0, 1)
    rows = np.flatnonzero(is_followed(batch))
    targets = to_device(next_tokens(batch), device)
    pairs = zip(_blocks(to_device(rows, device), logits), _blocks(targets, logits), strict=True)
    # rows are chosen block by block: all at once would be the logits a second time
    return torch.cat(
        [
            cross_entropy(logits.index_select(0, place).float(), target, reduction="none")
            for place, target in pairs
        ]
    )


def next_token_logits(output: object, batch: TokenBatch, device: torch.device) -> Tensor:
    """The logits [N', V] that these losses are of, in the model's dtype."""
    rows = to_device(np.flatnonzero(is_followed(batch)), device)
    return _logits(output, batch).flatten(0, 1).index_select(0, rows)


def row_logits(output: object, batch: TokenBatch, rows: I64, device: torch.device) -> Tensor:
    """The logits [n, V] of the token after each of some real tokens, by their places among all N."""
    real = np.flatnonzero(np.arange(batch.token_ids.shape[1]) < batch.lengths[:, None])
    return _logits(output, batch).flatten(0, 1).index_select(0, to_device(real[rows], device))


def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
    """-ln p(target), float32 [N'], of logits [N', V] and token ids int64 [N']."""
    pairs = zip(_blocks(logits, logits), _blocks(targets, logits), strict=True)
    return torch.cat([cross_entropy(part.float(), target, reduction="none") for part, target in pairs])


def divergences(clean: Tensor, other: Tensor) -> Tensor:
    """KL(clean || other) in nats, float32 [N'], of two models' logits [N', V] of the same tokens."""
    pairs = zip(_blocks(clean, clean), _blocks(other, clean), strict=True)
    parts = []
    for a, b in pairs:
        p, q = log_softmax(a.float(), 1), log_softmax(b.float(), 1)
        # a token of probability 0 adds nothing, where 0 * -inf would be NaN
        parts.append(torch.where(p.isneginf(), 0, p.exp() * (p - q)).sum(1))
    return torch.cat(parts)


def is_followed(batch: TokenBatch) -> Bool:
    """Which of the B * T places hold a real token whose successor in its context is real, bool [B * T]."""
    real = np.arange(batch.token_ids.shape[1]) < batch.lengths[:, None]
    followed = np.zeros_like(real)
    followed[:, :-1] = real[:, 1:]
    return followed.ravel()


def next_tokens(batch: TokenBatch) -> I64:
    """The tokens that follow them, int64 [N']."""
    return batch.token_ids.ravel()[np.flatnonzero(is_followed(batch)) + 1]


def _blocks(values: Tensor, logits: Tensor) -> Iterator[Tensor]:
    """Values [N', ...] in pieces for which BLOCK logits are made float32."""
    return iter(torch.split(values, max(1, BLOCK // logits.shape[1])))


def _logits(output: object, batch: TokenBatch) -> Tensor:
    """Logits [B, T, V] in what the model returned."""
    logits = getattr(output, "logits", output[0] if isinstance(output, tuple) and output else output)
    largest = int(batch.token_ids.max())
    shape = batch.token_ids.shape
    if not isinstance(logits, Tensor):
        problem = "no logits for the next token"
    elif logits.ndim != 3 or logits.shape[:2] != shape or logits.shape[2] <= largest:
        problem = f"{list(logits.shape)} and not logits [{shape[0]}, {shape[1]}, more than {largest}]"
    else:
        return logits
    raise InputError(
        f"the model returns {problem}, which losses need: use a causal language model with its head"
    )
