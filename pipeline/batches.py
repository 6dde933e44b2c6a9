"""A shard's contexts in batches for the model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from schemas.values import TokenBatch, TokenShard


def batches(tokens: TokenShard, batch_contexts: int) -> Iterator[tuple[TokenBatch, slice]]:
    """Cut a shard's contexts, in order, into batches, each with the rows that it covers."""
    for first in range(0, tokens.n_contexts, batch_contexts):
        ptr = tokens.context_ptr[first : first + batch_contexts + 1]
        lengths = np.diff(ptr)
        padded = np.zeros((len(lengths), int(lengths.max())), dtype=np.int64)
        real = np.arange(padded.shape[1]) < lengths[:, None]
        padded[real] = tokens.token_ids[ptr[0] : ptr[-1]]
        yield TokenBatch(padded, lengths), slice(int(ptr[0]), int(ptr[-1]))
