"""The tokens that name a cluster: those that distinguish its firing rows from all others.

Shapes: K clusters, V tokens.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy import sparse

from jobs.tables.clusters.vectors import rows_of
from schemas.values import F64, I32, I64

MOST_NAMED = 1024
"""Clusters of one clustering that get names and central contexts, the largest ones: counts stay small."""

TOKENS = 8
"""Tokens that name a cluster, at most."""

ANY_TOKEN = np.iinfo(np.int32).max
"""Columns of a matrix of counts: it is sparse, and nothing needs to know the vocabulary's size."""

_CHUNK = 1 << 24


def count_firing(
    token_ids: I32, activations: sparse.csr_matrix, cluster: I64, clusters: int
) -> sparse.csr_matrix:
    """Activations of each cluster's features on each token, then of all features: int64 [K + 1, V].

    `token_ids` int32 [N] and `activations` [N, F] are of the same rows, `cluster` int64 [F] is negative for
    features without one. A row in which two features of a cluster fire counts twice.
    """
    pointers = activations.indptr
    column = np.where(cluster < 0, clusters, cluster).astype(np.int32)  # the last one: without a cluster
    counts = counted(token_ids, np.full(len(token_ids), clusters), np.diff(pointers), clusters)
    # whole rows of at most about _CHUNK activations at once, whose column indices are held a second time
    cuts = np.searchsorted(pointers, np.arange(0, activations.nnz, _CHUNK))
    for first, last in pairwise(np.unique(np.append(cuts, len(token_ids)))):
        own = column[activations.indices[pointers[first] : pointers[last]]]
        parts = (np.ones(len(own), np.int32), own, pointers[first : last + 1] - pointers[first])
        firing = sparse.csr_matrix(parts, shape=(last - first, clusters + 1))
        # the product has a line for each token that occurs here, not for each of the vocabulary
        tokens, place = np.unique(token_ids[first:last], return_inverse=True)
        product = (rows_of(place, len(tokens), np.int32) @ firing).tocoo()
        has = product.col < clusters
        where = (tokens[product.row[has]], product.col[has], product.data[has].astype(np.int64))
        counts = counts + counted(*where, clusters)
    return counts


def count_rows(token_ids: I32, cluster: I64, clusters: int) -> sparse.csr_matrix:
    """Rows of each cluster with each token, then all rows, int64 [K + 1, V]; `cluster` is each row's [N]."""
    ones = np.ones(len(token_ids), np.int64)
    everything = counted(token_ids, np.full(len(token_ids), clusters), ones, clusters)
    return everything + counted(token_ids, cluster, ones, clusters)


def counted(token_ids: I32, cluster: I64, weights: I64, clusters: int) -> sparse.csr_matrix:
    """Weights added up by cluster and token, int64 [K + 1, V]; those of a negative cluster are left out."""
    has = cluster >= 0
    where = (cluster[has].astype(np.int32), token_ids[has])
    return sparse.coo_matrix((weights[has], where), shape=(clusters + 1, ANY_TOKEN)).tocsr()


def naming_tokens(counts: sparse.csr_matrix) -> list[I64]:
    """Ids of the tokens that name each cluster, the best first, from the counts [K + 1, V] of all shards.

    A token t of cluster c scores p(t | c) ln(p(t | c) / p(t)), its part of the Kullback-Leibler divergence
    of the cluster's tokens from all tokens (Tomokiyo and Hurst 2003 call it informativeness): common in the
    cluster, and more so than elsewhere. Only positive scores count; equal ones go by token.
    """
    overall = counts[-1]
    p_all = overall.data / max(overall.data.sum(), 1)
    named = []
    for cluster in range(counts.shape[0] - 1):
        row = counts[cluster]
        p = row.data / max(row.data.sum(), 1)
        # every token of a cluster is among all tokens, so the search finds itself
        score: F64 = p * np.log(p / p_all[np.searchsorted(overall.indices, row.indices)])
        best = np.lexsort((row.indices, -score))[:TOKENS]
        named.append(row.indices[best[score[best] > 0]].astype(np.int64))
    return named
