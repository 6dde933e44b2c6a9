"""The second pass over all shards: each context and document gets its cluster, and clusters their tokens.

One task reads one shard, once, for all clusterings. What comes back is bounded by the clusters (at most
MOST_NAMED of each clustering are described), not by the shards, and is added up in shard order.
Shapes: N rows, F = d_sae, K clusters, V tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy import sparse

from jobs.tables.clusters.kmeans import NO_CLUSTER, assign
from jobs.tables.clusters.naming import MOST_NAMED, count_firing, count_rows
from jobs.tables.clusters.vectors import Kind, places, read_tokens, span, sums_of, unit_vectors
from jobs.terminal.progress import track
from pipeline.store import FeatureStore
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.tasks import Tasks
from schemas.layout import Layout
from schemas.records import Lake
from schemas.values import F32, F64, I64, RowSelection, TokenShard

EXAMPLES = 5
"""Central contexts of a cluster."""


@dataclass(frozen=True)
class Fitted:
    """What contexts, or documents, are assigned by: unit centres float32 [K, F], weights float64 [F]."""

    centres: F32
    weights: F64


@dataclass(frozen=True)
class Central:
    """The contexts nearest to clusters of features: at most EXAMPLES of each, best first, by cluster."""

    cluster: I64
    context: I64
    score: F32

    def best(self) -> Central:
        """At most EXAMPLES of each cluster; equally near contexts by number."""
        order = np.lexsort((self.context, -self.score, self.cluster))
        cluster = self.cluster[order]
        # `cluster` ascends, so a search from the left finds where the cluster of each entry begins
        rank = np.arange(len(order)) - np.searchsorted(cluster, cluster)
        kept = order[rank < EXAMPLES]
        return Central(self.cluster[kept], self.context[kept], self.score[kept])

    def __add__(self, other: Central) -> Central:
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("cluster", "context", "score"))
        return Central(*map(np.concatenate, pairs)).best()

    def by_cluster(self, clusters: int) -> list[list[int]]:
        """The contexts of each cluster 0 .. `clusters` - 1."""
        cuts = np.searchsorted(self.cluster, np.arange(1, clusters))
        return [part.tolist() for part in np.split(self.context, cuts)] if clusters else []


@dataclass(frozen=True)
class Placed:
    """Number, cluster (NO_CLUSTER: none) and cosine of contexts or documents, [C] each."""

    number: I64
    label: I64
    cosine: F32


@dataclass(frozen=True)
class Counts:
    """Of clusters of contexts or documents.

    `active` int64 [K, F]: in how many of a cluster a feature is active. `tokens` int64 [K + 1, V]: rows of
    the first MOST_NAMED clusters with a token, and of all.
    """

    active: sparse.csr_matrix
    tokens: sparse.csr_matrix

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.active + other.active, self.tokens + other.tokens)


@dataclass(frozen=True)
class Described:
    """Of clusters of features: activations on each token, int64 [K + 1, V], and the nearest contexts."""

    tokens: sparse.csr_matrix
    central: Central

    def __add__(self, other: Described) -> Described:
        return Described(self.tokens + other.tokens, self.central + other.central)


@dataclass(frozen=True)
class Assigned:
    """The result of the pass, by kind of group, and by name of the clustering of features."""

    placed: dict[Kind, Placed]
    counts: dict[Kind, Counts]
    features: dict[str, Described]


def assign_all(
    store: FeatureStore, site: str, fitted: dict[Kind, Fitted], clusters: dict[str, I64], tasks: Tasks
) -> Assigned:
    """Read all committed shards, of which there is at least one.

    `clusters` holds each clustering's cluster of every feature, int64 [F].
    """
    shards, info = store.shard_files(site), store.site(site)
    named = {name: np.where(labels < MOST_NAMED, labels, NO_CLUSTER) for name, labels in clusters.items()}
    assign_shard = partial(_assign_shard, store.layout, store.lake, info.selection, fitted, named)
    placed: dict[Kind, list[Placed]] = {kind: [] for kind in fitted}
    counts: dict[Kind, Counts] = {}
    features: dict[str, Described] = {}
    for part in track(tasks.map(assign_shard, shards), "cluster: assigning members", len(shards), "shards"):
        for kind, placed_part in part.placed.items():
            placed[kind].append(placed_part)
        _add(counts, part.counts)
        _add(features, part.features)
    names = ("number", "label", "cosine")
    all_placed = {
        kind: Placed(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
        for kind, parts in placed.items()
    }
    return Assigned(all_placed, counts, features)


def _add(total: dict[Any, Any], new: dict[Any, Any]) -> None:
    for name, value in new.items():
        total[name] = total[name] + value if name in total else value


def _assign_shard(
    layout: Layout,
    lake: Lake,
    selection: RowSelection,
    fitted_by_kind: dict[Kind, Fitted],
    clusters: dict[str, I64],
    shard: ShardFiles,
) -> Assigned:
    activations = shard.read_csr()
    tokens = read_tokens(layout, lake, shard).restrict(selection, lake.context_size)
    placed: dict[Kind, Placed] = {}
    counts: dict[Kind, Counts] = {}
    vectors: dict[Kind, sparse.csr_matrix] = {}
    for kind, fitted in fitted_by_kind.items():
        sums = sums_of(activations, tokens, shard.record, kind)
        vectors[kind] = unit_vectors(sums, fitted.weights)
        label, cosine = assign(vectors[kind], fitted.centres)
        start, n = span(shard.record, kind)
        placed[kind] = Placed(start + np.arange(n), label, cosine)
        counts[kind] = _count(sums, label, tokens, places(tokens, shard.record, kind), len(fitted.centres))
    features = {
        name: Described(
            count_firing(tokens.token_ids, activations, cluster, _number(cluster)),
            _central(vectors["context"], cluster, shard.record.context_start),
        )
        for name, cluster in clusters.items()
    }
    return Assigned(placed, counts, features)


def _count(sums: sparse.csr_matrix, label: I64, tokens: TokenShard, place: I64, clusters: int) -> Counts:
    # clusters x contexts times contexts x features, both of ones: contexts of a cluster that have a feature
    has = np.flatnonzero(label != NO_CLUSTER)
    indicator = sparse.csr_matrix((np.ones(len(has), np.int64), (label[has], has)), (clusters, len(label)))
    present = sparse.csr_matrix((np.ones(sums.nnz, np.int64), sums.indices, sums.indptr), shape=sums.shape)
    rows = count_rows(tokens.token_ids[tokens.counted], label[place[tokens.counted]], clusters)
    return Counts(indicator @ present, rows)


def _central(contexts: sparse.csr_matrix, cluster: I64, first: int) -> Central:
    """Contexts by the cosine of their vector, all signs dropped, and the sum of the cluster's features."""
    has = np.flatnonzero(cluster != NO_CLUSTER)
    sizes = np.bincount(cluster[has], minlength=_number(cluster))
    # each column is scaled to length 1, so that a score is a cosine and large clusters have no advantage
    parts = ((1 / np.sqrt(sizes[cluster[has]])).astype(np.float32), (has, cluster[has]))
    score = (abs(contexts) @ sparse.csr_matrix(parts, (len(cluster), len(sizes)))).tocoo()
    return Central(score.col.astype(np.int64), score.row.astype(np.int64) + first, score.data).best()


def _number(cluster: I64) -> int:
    """Clusters there are: they are numbered from 0 without gaps."""
    return int(cluster.max(initial=NO_CLUSTER)) + 1
