"""Features by density of their decoder directions: HDBSCAN (Campello, Moulavi and Sander 2013).

Directions of an SAE are nearly orthogonal, and HDBSCAN, which takes any density for one, finds more clusters
among random directions than among those of an SAE (264 against 135 on the demo's). So two features are
neighbours only where their cosine is above chance: above the cosine with its nearest that CHANCE of as many
random directions with the same mean and covariance stay below. Each connected part of that graph goes to
HDBSCAN, whose leaves are the clusters (its other choice, excess of mass, takes a part as one); a part that it
does not split is one. What is in no cluster is noise: most features are, and all random ones. Directions of
which a few groups hold most are no dense places by this rule: their covariance says as much.

Cost and memory grow with the square of the features clustered, so of more than FIT_FEATURES a sample is,
and the rest is read by blocks: each of it is joined to the cluster of its nearest clustered feature, where
their cosine is no less than that of the cluster's loneliest member and its nearest member.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import HDBSCAN
from threadpoolctl import threadpool_limits

from jobs.tables.clusters.kmeans import NO_CLUSTER
from jobs.tables.clusters.members import Members
from jobs.tables.clusters.rows import Rows, assign_rows, cosines_with_mean, sample, take
from jobs.tables.pairs.directions import unit_rows
from pipeline.tasks import Tasks
from schemas.values import F32, I64

FIT_FEATURES = 8192
"""At worst, all in one part, a minute of one core and 2 GB."""

CHANCE = 0.99

MIN_SAMPLES = 2
"""Features within the core distance, itself included: with more, next to nothing is dense enough."""

_ROWS = 1024


def dense_groups(
    rows: Rows, min_cluster_size: int, seed: int, tasks: Tasks | None = None
) -> tuple[Members, F32]:
    """Clusters of unit vectors [n, d], noise without one, and HDBSCAN's probability of each [n].

    Closeness is the cosine with the mean direction of the cluster. The probability of a feature that was
    joined afterwards is NaN. The same for any number of threads and workers.
    """
    sample_rows = sample(rows, FIT_FEATURES, seed)
    labels, probability = np.full(len(rows), NO_CLUSTER, np.int64), np.zeros(len(rows), np.float32)
    sampled = take(rows, sample_rows)
    with threadpool_limits(1):
        labels[sample_rows], probability[sample_rows] = _leaves(sampled, min_cluster_size, seed)
    rest = np.setdiff1d(np.arange(len(rows)), sample_rows)
    if len(rest):
        labels[rest] = joined(rows, sampled, labels[sample_rows], tasks)[rest]
    probability[rest[labels[rest] != NO_CLUSTER]] = np.nan
    clusters = int(labels.max(initial=-1)) + 1
    return Members.of(labels, cosines_with_mean(rows, labels, clusters), clusters), probability


def chance_cosine(units: F32, seed: int) -> float:
    """The cosine with the nearest other one that CHANCE of n such random directions stay below."""
    n, rng, mean = len(units), np.random.default_rng(seed), units.mean(axis=0)
    blocks = [
        rng.standard_normal((min(_ROWS, n - first), n), np.float32) @ (units - mean) / np.sqrt(n) + mean
        for first in range(0, n, _ROWS)
    ]
    # each draw is a random mix of the directions themselves, which has their mean and covariance
    random, _ = unit_rows(np.concatenate(blocks))
    nearest = np.concatenate([block.max(axis=1) for _, block in _cosine_blocks(random)])
    return float(np.quantile(nearest, CHANCE))


def _cosine_blocks(units: F32) -> Iterator[tuple[int, F32]]:
    """Cosines of some vectors and all, -2 with itself: the first one's place, float32 [rows, n]."""
    for first in range(0, len(units), _ROWS):
        block = units[first : first + _ROWS] @ units.T
        rows = np.arange(len(block))
        block[rows, first + rows] = -2
        yield first, block


def _leaves(units: F32, min_cluster_size: int, seed: int) -> tuple[I64, F32]:
    """HDBSCAN of the pairs above chance: cluster and probability of each [n]."""
    labels, probability = np.full(len(units), NO_CLUSTER, np.int64), np.zeros(len(units), np.float32)
    if len(units) < min_cluster_size:
        return labels, probability
    limit, n_clusters = chance_cosine(units, seed), 0
    near = sparse.vstack([sparse.csr_matrix(block > limit) for _, block in _cosine_blocks(units)])
    _, part = connected_components(near, directed=False)
    for number in np.flatnonzero(np.bincount(part) >= min_cluster_size):
        in_part = np.flatnonzero(part == number)
        distance = 1 - (units[in_part] @ units[in_part].T).astype(np.float64)
        distance[distance >= 1 - limit] = 2  # a pair that chance has too is as far apart as can be
        distance = np.maximum(np.maximum(distance, distance.T), 0)
        np.fill_diagonal(distance, 0)
        tree = HDBSCAN(
            min_cluster_size=min_cluster_size,
            min_samples=MIN_SAMPLES,
            metric="precomputed",
            cluster_selection_method="leaf",
            copy=False,
        ).fit(distance)
        whole = tree.labels_.max() < 0
        leaf, sure = (np.zeros(len(in_part), np.int64), 1) if whole else (tree.labels_, tree.probabilities_)
        labels[in_part] = np.where(leaf >= 0, n_clusters + leaf, NO_CLUSTER)
        probability[in_part] = sure
        n_clusters += int(leaf.max()) + 1
    return labels, probability


def joined(rows: Rows, sampled: F32, labels: I64, tasks: Tasks | None = None) -> I64:
    """The cluster of each of `rows` [n], from those of the vectors `sampled` [s, d]: see above."""
    members = np.flatnonzero(labels != NO_CLUSTER)
    if not len(members):
        return np.full(len(rows), NO_CLUSTER, np.int64)
    nearest, cosine = assign_rows(rows, sampled[members], tasks)
    # what joins a cluster is at least as near to it as its loneliest member is to another member
    reach = np.ones(labels.max() + 1)
    with threadpool_limits(1):
        for cluster in range(len(reach)):
            among = sampled[labels == cluster] @ sampled[labels == cluster].T
            np.fill_diagonal(among, -2)
            reach[cluster] = among.max(axis=1).min()
    cluster_of = labels[members[nearest]]
    near = (nearest != NO_CLUSTER) & (cosine >= reach[cluster_of])
    return np.where(near, cluster_of, NO_CLUSTER)
