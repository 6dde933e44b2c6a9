"""Token shards and recipes for tests of what is drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import sparse

from pipeline.synthetic.generator import Generator
from pipeline.synthetic.recipe import parse
from schemas.values import SparseFeatures, TokenShard


def generator(spec: str = "d_sae=512,l0=12", **changes: float) -> Generator:
    return Generator(parse("synthetic:" + ",".join([spec, *(f"{k}={v}" for k, v in changes.items())])))


def shard_of(lengths, context: int = 16, counted=None, row_start: int = 0) -> TokenShard:
    """A shard of documents of these lengths, numbered from 0, in contexts of so many rows."""
    rows = int(sum(lengths))
    every = np.ones(rows, bool) if counted is None else counted
    return TokenShard(
        name="000000",
        row_start=row_start,
        context_start=0,
        token_ids=np.zeros(rows, np.int32),
        context_ptr=np.append(np.arange(0, rows, context), rows).astype(np.int64),
        counted=every,
        stored=every,
        document=np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths),
    )


def rows_of(shard: TokenShard, low: int, high: int) -> TokenShard:
    """A part of a shard's rows, with their places in the lake."""
    some = slice(low, high)
    parts = {name: getattr(shard, name)[some] for name in ("token_ids", "counted", "stored", "document")}
    pointers = np.array([0, high - low], np.int64)
    return replace(shard, row_start=shard.row_start + low, context_ptr=pointers, **parts)


def drawn(made: Generator, shard: TokenShard) -> SparseFeatures:
    return SparseFeatures.concatenate(list(made.blocks(shard)))


def matrix(features: SparseFeatures, d_sae: int) -> sparse.csr_matrix:
    shape = (len(features.indptr) - 1, d_sae)
    return sparse.csr_matrix((features.data, features.indices, features.indptr), shape=shape)
