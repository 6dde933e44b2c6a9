"""Contexts as vectors over features, for clustering, made shard by shard.

Shapes: C contexts, F = d_sae. A context's vector is the tf-idf of its features: log(1 + |s|) of the sum s
of a feature's activations in the context, with the sign of s, times log((1 + C) / (1 + c)) + 1 where the
feature is active in c of the C contexts; all that scaled to length 1. The logarithm keeps a few strong
rows from drowning the rest, the second factor does so with features that fire everywhere, and equal
lengths leave the direction alone. On words of the State of the Union addresses in place of features,
clusters of such vectors tell of the year (normalised mutual information 0.23) more than those of plain
sums of length 1 (0.13).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import sparse

from pipeline.executors.tasks import OneProcess, Tasks
from pipeline.store import FeatureStore
from pipeline.store.shard_files import ShardFiles
from pipeline.store.tokens import read_token_shard
from schemas.layout import Layout
from schemas.records import Lake
from schemas.values import F64, I64


@dataclass(frozen=True)
class Survey:
    """What one reading of all committed shards tells.

    `n_active` int64 [F] counts rows, `active_contexts` int64 [F] contexts in which each feature is active;
    `contexts` is C; `sample` float32 [at most the size asked for, F] holds sums of some contexts, in order.
    """

    n_active: I64
    active_contexts: I64
    contexts: int
    sample: sparse.csr_matrix

    def weights(self) -> F64:
        """The second factor of every feature, float64 [F]."""
        weights: F64 = np.log((1 + self.contexts) / (1 + self.active_contexts)) + 1
        return weights


@dataclass(frozen=True)
class _Part:
    """What one shard tells the survey."""

    n_active: I64
    active_contexts: I64
    sample: sparse.csr_matrix


def survey(store: FeatureStore, site: str, most: int, seed: int, tasks: Tasks | None = None) -> Survey:
    """Read every shard once; the sample holds all contexts, or `most` of them drawn at random."""
    d_sae, shards = store.site(site).d_sae, store.shard_files(site)
    total = sum(shard.record.contexts for shard in shards)
    chosen, items, first = _draw(total, most, seed), list[tuple[ShardFiles, I64]](), 0
    for shard in shards:
        low, high = np.searchsorted(chosen, [first, first + shard.record.contexts])
        items.append((shard, chosen[low:high] - first))
        first += shard.record.contexts
    n_active, active_contexts = np.zeros(d_sae, np.int64), np.zeros(d_sae, np.int64)
    parts = [sparse.csr_matrix((0, d_sae), dtype=np.float32)]
    for part in (tasks or OneProcess()).map(partial(_survey_shard, store.layout, store.lake), items):
        n_active += part.n_active
        active_contexts += part.active_contexts
        parts.append(part.sample)
    return Survey(n_active, active_contexts, total, sparse.vstack(parts, format="csr"))


def _survey_shard(layout: Layout, lake: Lake, item: tuple[ShardFiles, I64]) -> _Part:
    shard, chosen = item
    activations, sums = context_sums(layout, lake, shard)
    n_active, active_contexts = (
        np.bincount(matrix.indices, minlength=shard.d_sae) for matrix in (activations, sums)
    )
    return _Part(n_active, active_contexts, sums[chosen])


def context_sums(
    layout: Layout, lake: Lake, shard: ShardFiles
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Activations of a shard and, for each of its contexts, their sums, float32 [C, F]."""
    activations = shard.read_csr()
    starts = read_token_shard(layout, lake, shard.record, verify=False).context_ptr
    parts = (activations.data, activations.indices, activations.indptr[starts])
    sums = sparse.csr_matrix(parts, shape=(len(starts) - 1, activations.shape[1]), copy=True)
    sums.sum_duplicates()
    sums.eliminate_zeros()
    return activations, sums


def unit_vectors(sums: sparse.csr_matrix, weights: F64) -> sparse.csr_matrix:
    """The vectors of contexts, float32 [C, F]; one in which nothing is active stays empty."""
    values = np.sign(sums.data) * np.log1p(np.abs(sums.data)) * weights[sums.indices]
    counts = np.diff(sums.indptr)
    context = np.repeat(np.arange(len(counts)), counts)
    length = np.sqrt(np.bincount(context, weights=values**2, minlength=len(counts)))
    parts = ((values / length[context]).astype(np.float32), sums.indices, sums.indptr)
    return sparse.csr_matrix(parts, shape=sums.shape)


def _draw(total: int, most: int, seed: int) -> I64:
    """Places of at most `most` of `total` contexts, ascending, the same for the same seed."""
    if total <= most:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
