"""Spherical k-means: directions grouped by cosine, the same bits for any number of threads.

Shapes: n vectors of width d, K clusters. Vectors are dense or CSR, float32, and every row is a unit vector.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse
from sklearn.cluster import kmeans_plusplus
from threadpoolctl import threadpool_limits

from jobs.tables.pairs.directions import unit_rows
from schemas.values import F32, I64

RESTARTS, FEW = 3, 8192
"""Starts of k-means (k-means++ each), of which the one with the largest sum of cosines is kept. More vectors
than FEW get one start: it comes within 1 % of the best of three."""

STEPS = 100
"""Of Lloyd's algorithm, at most."""

SPARSE_STEPS, SPARSE_WORK = 6, 10**10
"""Of sparse vectors, after those of their sketch: as many steps as take so many multiplications, at least 6:
of 12,000 contexts at 65,536 features these reach the mean cosine of 100 to 0.1 %."""

SKETCHED = 1024
"""Width at which sparse vectors are clustered first."""

MOST_CLUSTERS = 512
"""Of a default number of clusters: nobody reads more, and centres are dense."""

NO_CLUSTER = -1

_ROWS = 4096

Vectors: TypeAlias = Any
"""F32 or scipy.sparse.csr_matrix (which has no types)."""


def default_clusters(n: int) -> int:
    """sqrt(n) / 2 rounded, at least 2 and at most MOST_CLUSTERS."""
    return min(max(round(math.sqrt(n) / 2), 2), MOST_CLUSTERS)


def fit(units: Vectors, clusters: int, seed: int) -> F32:
    """Unit centres [K, d] of unit vectors, K = `clusters`, or less where fewer differ.

    Spherical k-means (Dhillon and Modha 2001): Lloyd's steps, each centre the mean direction of its members,
    until no vector changes its cluster or STEPS are made, from k-means++ (Arthur and Vassilvitskii 2007).
    Sparse vectors are first clustered as they are in `sketch`, and from there as they are.
    """
    clusters = min(clusters, units.shape[0])
    if clusters == 0:
        return np.zeros((0, units.shape[1]), np.float32)
    with threadpool_limits(1):
        small = sketch(units, seed) if sparse.issparse(units) else units
        runs = []
        for start in range(RESTARTS if units.shape[0] <= FEW else 1):
            centres, _ = kmeans_plusplus(small, clusters, random_state=(seed + start) % 2**32)
            runs.append(lloyd(small, np.maximum(assign(small, centres)[0], 0)))  # -1: a vector of zeros
        labels, _ = max(runs, key=lambda fitted: fitted[1])
        if small is not units:
            steps = max(SPARSE_STEPS, SPARSE_WORK // max(units.nnz * clusters, 1))
            labels, _ = lloyd(units, labels, min(STEPS, steps))
        return mean_directions(units, labels)


def sketch(units: sparse.csr_matrix, seed: int) -> F32:
    """Sparse vectors at SKETCHED numbers each, float32 [n, SKETCHED], dense; narrower ones as they are.

    Every entry is added, with a random sign, to one random place (the Count Sketch of Charikar, Chen and
    Farach-Colton 2002): inner products stay what they are but for noise of about 1 / sqrt(SKETCHED).
    """
    width = units.shape[1]
    if width <= SKETCHED:
        return np.asarray(units.toarray())
    rng = np.random.default_rng(seed)
    place, sign = rng.integers(0, SKETCHED, width), rng.choice(np.array([-1, 1], np.float32), width)
    hashing = sparse.csr_matrix((sign, place, np.arange(width + 1)), shape=(width, SKETCHED))
    return unit_rows(np.asarray((units @ hashing).toarray()))[0]


def lloyd(units: Vectors, labels: I64, steps: int = STEPS) -> tuple[I64, float]:
    """Lloyd's steps from given clusters [n] on: clusters [n], without gaps, and the sum of all cosines.

    Cosines with all centres are kept, 4 n K bytes, and made anew of centres whose members changed. A vector
    leaves its cluster for a larger cosine alone; a cluster that all leave is gone.
    """
    labels = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    centres = mean_directions(units, labels)
    cosine = _cosines(units, centres)
    rows, total = np.arange(len(labels)), 0.0
    for _ in range(steps):
        nearest = cosine.argmax(axis=1)
        moved = cosine[rows, nearest] > cosine[rows, labels]
        total = float(cosine[rows, labels].sum(dtype=np.float64))
        if not moved.any():
            break
        # only the centres that lost or won a vector move, so only their cosines are made anew
        changed = np.unique(np.append(labels[moved], nearest[moved]))
        labels = np.where(moved, nearest, labels)
        number = np.full(len(centres), NO_CLUSTER)
        number[changed] = np.arange(len(changed))
        of_changed = mean_directions(units, number[labels], len(changed))
        cosine[:, changed] = _cosines(units, of_changed)
        gone = ~of_changed.any(axis=1)
        cosine[:, changed[gone]] = -2  # below any cosine, so that nothing goes back to an empty cluster
    return np.unique(labels, return_inverse=True)[1].astype(np.int64), total


def mean_directions(units: Vectors, labels: I64, clusters: int | None = None) -> F32:
    """Sums of each cluster's members at length 1, float32 [K, d]; 0 where there is none, or they cancel."""
    has = np.flatnonzero(labels != NO_CLUSTER)
    n = int(labels.max(initial=NO_CLUSTER)) + 1 if clusters is None else clusters
    # summing is a product with a sparse matrix of ones [K, n]: in the order of the vectors, in float64
    parts = (np.ones(len(has), np.float64), (labels[has], has))
    sums = sparse.csr_matrix(parts, shape=(n, len(labels))) @ units
    return unit_rows(np.asarray(sums.toarray() if sparse.issparse(sums) else sums))[0]


def _cosines(units: Vectors, centres: F32) -> F32:
    """Float32 [n, K]."""
    across = np.ascontiguousarray(centres.T)
    cosine: F32 = np.empty((units.shape[0], len(centres)), np.float32)
    for start in range(0, len(cosine), _ROWS):
        cosine[start : start + _ROWS] = units[start : start + _ROWS] @ across
    return cosine


def assign(units: Vectors, centres: F32) -> tuple[I64, F32]:
    """The centre with the largest cosine [n] (of equal ones the first) and that cosine [n].

    A row without a direction gets NO_CLUSTER and cosine 0.
    """
    labels, cosine = np.full(units.shape[0], NO_CLUSTER, np.int64), np.zeros(units.shape[0], np.float32)
    if len(centres):
        across = np.ascontiguousarray(centres.T)
        with threadpool_limits(1):
            for start in range(0, len(labels), _ROWS):
                block = np.asarray(units[start : start + _ROWS] @ across)
                labels[start : start + _ROWS] = block.argmax(axis=1)
                cosine[start : start + _ROWS] = block.max(axis=1)
    has_direction = np.diff(units.indptr) > 0 if sparse.issparse(units) else units.any(axis=1)
    labels[~has_direction] = NO_CLUSTER
    cosine[labels == NO_CLUSTER] = 0
    return labels, np.clip(cosine, -1, 1)


def relabel(labels: I64, clusters: int) -> tuple[I64, I64]:
    """Number clusters by size, the largest 0, equal ones by their first member; empty ones are dropped.

    Returns the new labels [n], and for each new cluster its old number [K].
    """
    assigned = labels != NO_CLUSTER
    sizes = np.bincount(labels[assigned], minlength=clusters)
    first = np.full(clusters, len(labels))
    np.minimum.at(first, labels[assigned], np.flatnonzero(assigned))
    order = np.lexsort((first, -sizes))[: np.count_nonzero(sizes)]
    number = np.full(clusters + 1, NO_CLUSTER)  # the last one is where NO_CLUSTER, -1, points to
    number[order] = np.arange(len(order))
    return number[labels], order
