"""A shard's contexts in batches for the model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from schemas.values import F32, TokenBatch, TokenShard


def batches(
    tokens: TokenShard, batch_contexts: int, contexts: range | None = None
) -> Iterator[tuple[TokenBatch, slice]]:
    """Cut a shard's contexts, or a range of them, in order into batches, each with the rows it covers."""
    contexts = range(tokens.n_contexts) if contexts is None else contexts
    for first in range(contexts.start, contexts.stop, batch_contexts):
        ptr = tokens.context_ptr[first : min(first + batch_contexts, contexts.stop) + 1]
        lengths = np.diff(ptr)
        # A mask [B, T] that is filled row by row, as rows lie: context after context, without the padding.
        padded = np.zeros((len(lengths), int(lengths.max())), dtype=np.int64)
        real = np.arange(padded.shape[1]) < lengths[:, None]
        rows = slice(int(ptr[0]), int(ptr[-1]))
        padded[real] = tokens.token_ids[rows]
        inputs: F32 | None = None
        if tokens.inputs is not None:  # vectors [N, width]; uint8 becomes 0 to 1
            inputs = np.zeros((*real.shape, tokens.inputs.shape[1]), dtype=np.float32)
            inputs[real] = tokens.inputs[rows]
            if tokens.inputs.dtype == np.uint8:
                inputs /= 255
        yield TokenBatch(padded, lengths, inputs), rows
