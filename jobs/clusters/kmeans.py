"""Spherical k-means: directions grouped by cosine, the same bits for any number of threads.

Shapes: n vectors of width d, K clusters. Vectors are dense or CSR, float32, and every row is a unit vector.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from schemas.values import F32, I64

RESTARTS, FEW = 3, 8192
"""Starts of k-means (k-means++ each), of which the one with the least squared distance is kept. More vectors
than FEW get one start: it comes within 1 % of the best of three, which takes minutes there."""

MOST_CLUSTERS = 512
"""Of a default number of clusters: more than that nobody reads, and centres are dense."""

NO_CLUSTER = -1

_ROWS = 4096

Vectors: TypeAlias = Any
"""F32 or scipy.sparse.csr_matrix (which has no types)."""


def default_clusters(n: int) -> int:
    """sqrt(n) / 2 rounded, at least 2 and at most MOST_CLUSTERS."""
    return min(max(round(math.sqrt(n) / 2), 2), MOST_CLUSTERS)


def unit_rows(vectors: F32) -> tuple[F32, NDArray[np.bool_]]:
    """Dense rows divided by their norm [n, d], and which have a direction [n]; a row without one is 0."""
    norm = np.linalg.norm(vectors.astype(np.float64), axis=1)
    has = (norm > 0) & np.isfinite(norm)
    units = np.zeros_like(vectors, dtype=np.float32)
    units[has] = vectors[has] / norm[has, None]
    return units, has


def fit(units: Vectors, clusters: int, seed: int) -> F32:
    """Unit centres [K, d] of unit vectors, K = `clusters` or n, if that is less.

    k-means by Lloyd's algorithm on unit vectors, where squared distance is 2 - 2 cosine; its means are then
    brought back to unit length, as Dhillon and Modha (2001) do in every step.
    """
    clusters = min(clusters, units.shape[0])
    if clusters == 0:
        return np.zeros((0, units.shape[1]), np.float32)
    kmeans = KMeans(clusters, n_init=RESTARTS if units.shape[0] <= FEW else 1, random_state=seed)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal vectors: `relabel` drops empty clusters
        centres = kmeans.fit(units).cluster_centers_
    return unit_rows(centres.astype(np.float32))[0]


def assign(units: Vectors, centres: F32) -> tuple[I64, F32]:
    """The centre with the largest cosine [n] (of equal ones the first) and that cosine [n].

    A row without a direction gets NO_CLUSTER and cosine 0.
    """
    labels, cosine = np.full(units.shape[0], NO_CLUSTER, np.int64), np.zeros(units.shape[0], np.float32)
    if len(centres):
        with threadpool_limits(1):
            for start in range(0, len(labels), _ROWS):
                block = np.asarray(units[start : start + _ROWS] @ centres.T)
                labels[start : start + _ROWS] = block.argmax(axis=1)
                cosine[start : start + _ROWS] = block.max(axis=1)
    labels[~_has_direction(units)] = NO_CLUSTER
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


def _has_direction(units: Vectors) -> NDArray[np.bool_]:
    has: NDArray[np.bool_] = np.diff(units.indptr) > 0 if sparse.issparse(units) else units.any(axis=1)
    return has
