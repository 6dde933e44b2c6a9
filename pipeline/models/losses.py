"""Losses of next-token prediction.

B contexts, T positions, V vocabulary, N' real tokens whose successor in their context is real too.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.models.device import to_device
from schemas.errors import InputError
from schemas.values import TokenBatch

BLOCK = 1 << 25
"""Logits made float32 at a time (128 MiB): all of them at once may be more than the model."""


def next_token_losses(output: object, batch: TokenBatch, device: torch.device) -> Tensor:
    """-ln p(next token), float32 [N'] in (context, position) order, from what a model returned.

    That is its logits [B, T, V], alone, first in a tuple, or as `.logits`. Log-softmax is in float32.
    """
    logits = _logits(output, batch)
    real = np.arange(batch.token_ids.shape[1]) < batch.lengths[:, None]
    followed = np.zeros_like(real)
    followed[:, :-1] = real[:, 1:]
    rows = np.flatnonzero(followed)
    places = to_device(rows, device)
    targets = to_device(batch.token_ids.ravel()[rows + 1], device)
    flat, size = logits.flatten(0, 1), max(1, BLOCK // logits.shape[2])
    parts = [
        cross_entropy(flat.index_select(0, place).float(), target, reduction="none")
        for place, target in zip(torch.split(places, size), torch.split(targets, size), strict=True)
    ]
    return torch.cat(parts)


def _logits(output: object, batch: TokenBatch) -> Tensor:
    """Logits [B, T, V] in what the model returned."""
    logits = getattr(output, "logits", output[0] if isinstance(output, tuple) and output else output)
    largest = int(batch.token_ids.max())
    shape = batch.token_ids.shape
    if not isinstance(logits, Tensor):
        found = "no logits of the next token"
    elif logits.ndim != 3 or logits.shape[:2] != shape or logits.shape[2] <= largest:
        found = f"{list(logits.shape)} and not logits [{shape[0]}, {shape[1]}, more than {largest}]"
    else:
        return logits
    raise InputError(f"the model gives {found}, which losses need: use a causal language model with its head")
