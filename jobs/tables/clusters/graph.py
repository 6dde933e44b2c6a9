"""Features by co-activation: communities of the graph of the table `neighbours`, by the Leiden algorithm.

An edge weighs the pair's normalised pointwise mutual information (`jobs.tables.pairs.association`): 1 where
two features fire only together, 0 where they meet as often as chance has it; pairs at 0 or below have no
edge. The Jaccard index would not do: two features that fire, independently, in three rows of ten have 0.18,
more than most pairs that belong together.
"""

from __future__ import annotations

import graspologic_native
import numpy as np
import polars as pl
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from threadpoolctl import threadpool_limits

from jobs.tables.clusters.kmeans import NO_CLUSTER
from jobs.tables.clusters.members import Members
from jobs.tables.pairs.association import PairCounts, npmi
from jobs.tables.pairs.directions import unit_rows
from schemas.values import F32, F64

LARGEST_GRAPH = 1 << 24
"""Rows of `neighbours` that are read: 16 of each of a million features (some 1 GB). Of more, those of
lowest rank."""

DIMENSIONS = 64
"""Of the vectors of features."""

ITERATIONS = 10
"""Times that Leiden goes over the whole graph."""


def communities(graph: sparse.csr_matrix, resolution: float, seed: int) -> tuple[Members, F64, float]:
    """Clusters of the features [F] of a symmetric graph, the cohesion of each [K], and the modularity.

    Leiden (Traag, Waltman and van Eck 2019) by modularity with a `resolution` (Reichardt and Bornholdt
    2006): higher, smaller clusters. The closeness of a feature is its weighted degree within its cluster;
    cohesion is the part of the members' weighted degrees that lies within, 1 less the conductance. A
    feature without an edge has no cluster. One thread; the same graph and seed give the same clusters.
    """
    linked = np.flatnonzero(np.diff(graph.indptr))
    labels, quality = np.full(graph.shape[0], NO_CLUSTER, np.int64), 0.0
    if len(linked):
        # Leiden would make a cluster of every feature without an edge
        part = graph[linked][:, linked]
        quality, cluster_of = graspologic_native.leiden_csr(
            part.indptr.astype(np.int64),
            part.indices.astype(np.int32),
            part.data.astype(np.float64),
            len(linked),
            resolution=resolution,
            iterations=ITERATIONS,
            seed=seed,
        )
        labels[linked] = [cluster_of[node] for node in range(len(linked))]
    row = np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr))
    inside = labels[row] == labels[graph.indices]
    within, degree = (  # of no edge at all, bincount makes integers
        np.bincount(row, weights=weights, minlength=len(labels)).astype(np.float64)
        for weights in (graph.data * inside, graph.data)
    )
    members = Members.of(labels, within.astype(np.float32), int(labels.max(initial=-1)) + 1)
    return members, members.add_up(within) / members.add_up(degree), quality


def graph_of(neighbours: pl.DataFrame, counted_rows: int, d_sae: int) -> sparse.csr_matrix:
    """The graph of the table `neighbours`, float64 [F, F], symmetric: who is whose neighbour is not kept."""
    if "by" in neighbours.columns:  # tables from before `by` hold the neighbours by Jaccard's index alone
        neighbours = neighbours.filter(pl.col("by") == "jaccard")
    kept = neighbours.filter(pl.col("rank") < max(1, LARGEST_GRAPH // max(d_sae, 1)))
    both, n_a, n_b = (kept[name].to_numpy() for name in ("n_both", "n_a", "n_b"))
    # a pair that is active in every row has no NPMI, but never fires apart, which is what 1 stands for
    npmi_or_one = np.nan_to_num(npmi(PairCounts(both, n_a, n_b, counted_rows)), nan=1.0)
    edges = (
        kept.select(
            pl.min_horizontal("feature", "neighbour").alias("a"),
            pl.max_horizontal("feature", "neighbour").alias("b"),
            pl.Series("weight", npmi_or_one),
        )
        .filter(pl.col("weight") > 0)
        .unique(["a", "b"], keep="first")
        .sort("a", "b")
    )
    a, b, weight = (edges[name].to_numpy() for name in ("a", "b", "weight"))
    pairs = (np.append(a, b).astype(np.int64), np.append(b, a).astype(np.int64))
    return sparse.coo_matrix((np.append(weight, weight), pairs), shape=(d_sae, d_sae)).tocsr()


def embedded(graph: sparse.csr_matrix, seed: int) -> F32:
    """The features as unit vectors, near where they have the same neighbours: float32 [F, DIMENSIONS].

    Left singular vectors times the roots of the singular values (Levy, Goldberg and Dagan 2015, of words), of
    the weights and, on the diagonal, 1: what a feature's NPMI with itself is. 0 without an edge.
    """
    linked = np.flatnonzero(np.diff(graph.indptr))
    n = min(DIMENSIONS, len(linked) - 1)
    vectors = np.zeros((graph.shape[0], max(n, 1)), np.float32)
    if n > 0:
        part = graph[linked][:, linked] + sparse.identity(len(linked), format="csr")
        with threadpool_limits(1):
            svd = TruncatedSVD(n, n_iter=7, random_state=seed)
            projected = svd.fit_transform(part)
        vectors[linked] = projected / np.sqrt(np.maximum(svd.singular_values_, np.finfo(np.float32).tiny))
    return unit_rows(vectors)[0]
