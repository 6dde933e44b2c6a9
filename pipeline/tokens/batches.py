"""A shard's contexts in batches for the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.values import F32, Bool, TokenBatch, TokenShard


def batches(
    tokens: TokenShard, batch_contexts: int, contexts: range | None = None
) -> Iterator[tuple[TokenBatch, slice]]:
    """Cut a shard's contexts, or a range of them, in order into batches, each with the rows it covers."""
    contexts = range(tokens.n_contexts) if contexts is None else contexts
    for first in range(contexts.start, contexts.stop, batch_contexts):
        ptr = tokens.context_ptr[first : min(first + batch_contexts, contexts.stop) + 1]
        lengths = np.diff(ptr)
        padded = np.zeros((len(lengths), int(lengths.max())), dtype=np.int64)
        real = np.arange(padded.shape[1]) < lengths[:, None]
        padded[real] = tokens.token_ids[ptr[0] : ptr[-1]]
        rows = slice(int(ptr[0]), int(ptr[-1]))
        inputs = None if tokens.inputs is None else _padded(tokens.inputs[rows], real)
        yield TokenBatch(padded, lengths, inputs), rows


def _padded(inputs: NDArray[Any], real: Bool) -> F32:
    """Vectors [N, width] at the places of `real` [B, T], float32 [B, T, width]; uint8 becomes 0 to 1."""
    padded = np.zeros((*real.shape, inputs.shape[1]), dtype=np.float32)
    padded[real] = inputs
    if inputs.dtype == np.uint8:
        padded /= 255
    return padded
