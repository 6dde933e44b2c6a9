"""Features by density of their decoder directions: HDBSCAN (Campello, Moulavi and Sander 2013).

Directions of an SAE are nearly orthogonal, so in all their dimensions nothing is dense: they are first
brought to their DIMENSIONS principal components and to unit length again, so that distance goes by cosine
there. The leaves of HDBSCAN's tree are taken: its other choice, excess of mass, puts most features into one
cluster. Most features are noise, and that is what it is asked for.

The cost grows with the square of the features looked at, so of more than FIT_FEATURES a sample is; each
other feature is joined to the cluster of its nearest clustered one, where it lies no further from it than
the loneliest member of that cluster from another member.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.cluster import HDBSCAN
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from jobs.clusters.kmeans import NO_CLUSTER, unit_rows
from jobs.clusters.members import Members
from schemas.values import F32, I64

FIT_FEATURES = 16_384
"""Some two minutes of one core."""

DIMENSIONS = 64

MIN_SAMPLES = 2
"""Features within the core distance, itself included: with more, next to nothing is dense enough."""


def dense_groups(units: F32, min_cluster_size: int, seed: int) -> tuple[Members, F32]:
    """Clusters of unit vectors [n, d], noise without one, and HDBSCAN's probability of each [n].

    Closeness is the cosine with the mean direction of the cluster. The probability of a feature that was
    joined afterwards is NaN. The same for any number of threads.
    """
    looked_at = sample(units, FIT_FEATURES, seed)
    labels, probability = np.full(len(units), NO_CLUSTER, np.int64), np.zeros(len(units), np.float32)
    if len(looked_at) >= max(min_cluster_size, MIN_SAMPLES + 1):
        with threadpool_limits(1):
            places = reduced(units, looked_at, seed)
            found = HDBSCAN(
                min_cluster_size=min_cluster_size,
                min_samples=MIN_SAMPLES,
                cluster_selection_method="leaf",
                algorithm="kd_tree",
                n_jobs=1,
                copy=True,
            ).fit(places[looked_at])
            labels[looked_at], probability[looked_at] = found.labels_, found.probabilities_
            rest = np.setdiff1d(np.flatnonzero(units.any(axis=1)), looked_at)
            labels[rest] = joined(places[rest], places[looked_at], found.labels_)
            probability[rest[labels[rest] != NO_CLUSTER]] = np.nan
    clusters = int(labels.max(initial=-1)) + 1
    return Members.of(labels, _cosines(units, labels, clusters), clusters), probability


def sample(units: F32, most: int, seed: int) -> I64:
    """Places of the vectors that have a direction, or of `most` of them drawn at random, ascending."""
    has = np.flatnonzero(units.any(axis=1))
    if len(has) <= most:
        return has
    return np.sort(np.random.default_rng(seed).choice(has, most, replace=False))


def reduced(units: F32, looked_at: I64, seed: int) -> F32:
    """Unit vectors along the principal components of those looked at, float32 [n, at most DIMENSIONS]."""
    n = min(DIMENSIONS, units.shape[1], len(looked_at))
    solver = "full" if min(units.shape[1], len(looked_at)) <= 2 * DIMENSIONS else "randomized"
    pca = PCA(n, svd_solver=solver, random_state=seed).fit(units[looked_at])
    return unit_rows(pca.transform(units))[0]


def joined(rest: F32, clustered: F32, labels: I64) -> I64:
    """The cluster of each of `rest` [r, m], from those of `clustered` [s, m]: see above."""
    members = np.flatnonzero(labels != NO_CLUSTER)
    if not len(members) or not len(rest):
        return np.full(len(rest), NO_CLUSTER, np.int64)
    reach = np.zeros(labels.max() + 1)
    for cluster in range(len(reach)):
        mine = clustered[labels == cluster]
        reach[cluster] = NearestNeighbors(n_neighbors=1).fit(mine).kneighbors()[0][:, 0].max()
    distance, nearest = NearestNeighbors(n_neighbors=1).fit(clustered[members]).kneighbors(rest)
    cluster_of = labels[members[nearest[:, 0]]]
    return np.where(distance[:, 0] <= reach[cluster_of], cluster_of, NO_CLUSTER)


def _cosines(units: F32, labels: I64, clusters: int) -> F32:
    """Cosine of each vector and its cluster's mean direction, 0 without a cluster: float32 [n]."""
    has = np.flatnonzero(labels != NO_CLUSTER)
    indicator = sparse.csr_matrix((np.ones(len(has)), (labels[has], has)), shape=(clusters, len(units)))
    centres, _ = unit_rows((indicator @ units).astype(np.float32))
    cosine = np.zeros(len(units), np.float32)
    cosine[has] = np.einsum("nd,nd->n", units[has], centres[labels[has]])
    return np.clip(cosine, -1, 1)
