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

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from pipeline.store import FeatureStore
from pipeline.store.tokens import read_token_shard
from schemas.records import ShardRecord
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


def survey(store: FeatureStore, site: str, most: int, seed: int) -> Survey:
    """Read every shard once; the sample holds all contexts, or `most` of them drawn at random."""
    d_sae = store.site(site).d_sae
    n_active, active_contexts = np.zeros(d_sae, np.int64), np.zeros(d_sae, np.int64)
    total = sum(record.contexts for record in store.committed(site))
    chosen = _draw(total, most, seed)
    parts, first = [sparse.csr_matrix((0, d_sae), dtype=np.float32)], 0
    for record, activations, sums in context_sums(store, site):
        n_active += np.bincount(activations.indices, minlength=d_sae)
        active_contexts += np.bincount(sums.indices, minlength=d_sae)
        low, high = np.searchsorted(chosen, [first, first + record.contexts])
        parts.append(sums[chosen[low:high] - first])
        first += record.contexts
    return Survey(n_active, active_contexts, total, sparse.vstack(parts, format="csr"))


def context_sums(
    store: FeatureStore, site: str
) -> Iterator[tuple[ShardRecord, sparse.csr_matrix, sparse.csr_matrix]]:
    """Of each committed shard its activations and, for each of its contexts, their sums, float32 [C, F]."""
    for record in store.committed(site):
        activations = store.csr(site, record.name)
        starts = read_token_shard(store.layout, store.lake, record, verify=False).context_ptr
        parts = (activations.data, activations.indices, activations.indptr[starts])
        sums = sparse.csr_matrix(parts, shape=(len(starts) - 1, activations.shape[1]), copy=True)
        sums.sum_duplicates()
        sums.eliminate_zeros()
        yield record, activations, sums


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
