"""A shard's contexts in batches for the model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from schemas.values import TokenBatch, TokenShard


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
        yield TokenBatch(padded, lengths), slice(int(ptr[0]), int(ptr[-1]))
