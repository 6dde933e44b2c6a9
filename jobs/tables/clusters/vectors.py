"""Contexts and documents as vectors over features, for clustering, made shard by shard.

Shapes: C contexts (or documents), F = d_sae. A context's vector is the tf-idf of its features: log(1 + |s|)
of the sum s of a feature's activations in the context, with the sign of s, times log((1 + C) / (1 + c)) + 1
where the feature is active in c of the C contexts; all that scaled to length 1. The logarithm keeps a few
strong rows from drowning the rest, the second factor does so with features that fire everywhere, and equal
lengths leave the direction alone. On words of the State of the Union addresses in place of features,
clusters of such vectors predict the year (normalised mutual information 0.23) more than those of plain
sums of length 1 (0.13). A document's vector is made alike, of its sums and the documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
from scipy import sparse

from jobs.terminal.progress import track
from pipeline.store import FeatureStore
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.store.records.tokens import read_token_shard
from pipeline.tasks import OneProcess, Tasks
from schemas.layout import Layout
from schemas.records import Lake, ShardRecord
from schemas.values import F64, I64, TokenShard

Kind: TypeAlias = Literal["context", "document"]
KINDS: tuple[Kind, ...] = ("context", "document")

_CONTEXTS = 512
"""Whose float64 values are held at once."""


@dataclass(frozen=True)
class Sampled:
    """Counts over all contexts, or all documents, and a sample of them.

    `number` is C, `active` int64 [F] counts those in which each feature is active; `sample` float32
    [at most the given size, F] holds sums of some, in order.
    """

    number: int
    active: I64
    sample: sparse.csr_matrix

    def weights(self) -> F64:
        """The second factor of every feature, float64 [F]."""
        weights: F64 = np.log((1 + self.number) / (1 + self.active)) + 1
        return weights


@dataclass(frozen=True)
class Survey:
    """What one pass over all committed shards yields; `n_active` int64 [F] counts active rows."""

    n_active: I64
    of: dict[Kind, Sampled]


def survey(
    store: FeatureStore, site: str, most: Mapping[Kind, int], seed: int, tasks: Tasks | None = None
) -> Survey:
    """Read every shard once; of each kind the sample holds all, or `most` of them drawn at random."""
    d_sae, shards = store.site(site).d_sae, store.shard_files(site)
    totals: dict[Kind, int] = {kind: sum(span(s.record, kind)[1] for s in shards) for kind in KINDS}
    drawn = {kind: _draw(shards, kind, totals[kind], most[kind], seed) for kind in KINDS}
    items = [(shard, {kind: drawn[kind][i] for kind in KINDS}) for i, shard in enumerate(shards)]
    n_active = np.zeros(d_sae, np.int64)
    active = {kind: np.zeros(d_sae, np.int64) for kind in KINDS}
    parts = {kind: [sparse.csr_matrix((0, d_sae), dtype=np.float32)] for kind in KINDS}
    read = (tasks or OneProcess()).map(partial(_survey_shard, store.layout, store.lake), items)
    for of_shard in track(read, "cluster: reading activations", len(items), "shards"):
        n_active += of_shard.n_active
        for kind, sampled in of_shard.of.items():
            active[kind] += sampled.active
            parts[kind].append(sampled.sample)
    return Survey(
        n_active,
        {k: Sampled(totals[k], active[k], sparse.vstack(parts[k], format="csr")) for k in KINDS},
    )


def _survey_shard(layout: Layout, lake: Lake, item: tuple[ShardFiles, dict[Kind, I64]]) -> Survey:
    """The same of one shard, and of each kind those at the places drawn there."""
    shard, chosen = item
    activations, tokens = shard.read_csr(), read_tokens(layout, lake, shard)
    sampled: dict[Kind, Sampled] = {}
    for kind in KINDS:
        sums = sums_of(activations, tokens, shard.record, kind)
        active = np.bincount(sums.indices, minlength=shard.d_sae)
        sampled[kind] = Sampled(sums.shape[0], active, sums[chosen[kind]])
    return Survey(np.bincount(activations.indices, minlength=shard.d_sae), sampled)


def read_tokens(layout: Layout, lake: Lake, shard: ShardFiles) -> TokenShard:
    """A shard's tokens."""
    return read_token_shard(layout, lake, shard.record, verify=False)


def span(record: ShardRecord, kind: Kind) -> tuple[int, int]:
    """The number of a shard's first context (or document) in the lake, and how many there are."""
    if kind == "context":
        return record.context_start, record.contexts
    return record.document_start, record.documents


def places(tokens: TokenShard, record: ShardRecord, kind: Kind) -> I64:
    """The context (or document) of each row, counted from the shard's first, int64 [N]."""
    number = tokens.context_of_row() if kind == "context" else tokens.document.astype(np.int64)
    return number - span(record, kind)[0]


def sums_of(
    activations: sparse.csr_matrix, tokens: TokenShard, record: ShardRecord, kind: Kind
) -> sparse.csr_matrix:
    """Sums of a shard's activations over each of its contexts or documents, float32 [C, F], in row order.

    Indices of a row are in no order. A product of sparse matrices adds up in time linear in the activations;
    sorting a document's takes six times as long.
    """
    place, n = places(tokens, record, kind), span(record, kind)[1]
    sums = rows_of(place, n, np.float32) @ activations
    sums.eliminate_zeros()
    return sums


def rows_of(group: I64, n: int, dtype: type) -> sparse.csr_matrix:
    """Ones [n, N] where row i of N is of group[i], in the rows' order; to add up a matrix [N, any]."""
    # sorted by group, the rows of one lie side by side, which is what the indices of a CSR row are
    order = np.argsort(group, kind="stable")
    pointers = np.searchsorted(group[order], np.arange(n + 1))
    return sparse.csr_matrix((np.ones(len(order), dtype), order, pointers), shape=(n, len(group)))


def unit_vectors(sums: sparse.csr_matrix, weights: F64) -> sparse.csr_matrix:
    """The vectors of contexts, float32 [C, F]; one in which nothing is active stays empty."""
    values = np.empty(sums.nnz, np.float32)
    # by blocks, since lengths are float64 of every value, and only the quotient is float32
    for first in range(0, sums.shape[0], _CONTEXTS):
        pointers = sums.indptr[first : first + _CONTEXTS + 1]
        part = slice(int(pointers[0]), int(pointers[-1]))
        own = np.sign(sums.data[part]) * np.log1p(np.abs(sums.data[part])) * weights[sums.indices[part]]
        counts = np.diff(pointers)
        context = np.repeat(np.arange(len(counts)), counts)
        length = np.sqrt(np.bincount(context, weights=own**2, minlength=len(counts)))
        values[part] = own / length[context]
    return sparse.csr_matrix((values, sums.indices, sums.indptr), shape=sums.shape)


def _draw(shards: list[ShardFiles], kind: Kind, total: int, most: int, seed: int) -> list[I64]:
    """At most `most` of `total` contexts, the same for the same seed: of each shard the places, ascending."""
    chosen = np.arange(total)
    if total > most:
        chosen = np.sort(np.random.default_rng(seed).choice(total, most, replace=False))
    drawn, first = [], 0
    # drawn from the whole lake, then handed out: the sample does not depend on how shards were cut
    for shard in shards:
        last = first + span(shard.record, kind)[1]
        low, high = np.searchsorted(chosen, [first, last])
        drawn.append(chosen[low:high] - first)
        first = last
    return drawn
