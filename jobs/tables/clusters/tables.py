"""Columns of the tables that `latentlake cluster` writes.

Of each of feature, coactivation, density (clusterings of features), context and document there are
`<name>_clusters`, a row each, and `<name>_cluster_summary`, a row for each cluster.
"""

from __future__ import annotations

import polars as pl

from jobs.tables.clusters.vectors import Kind
from schemas.tables.tables import Schema

FEATURE_CLUSTERS: Schema = {
    "feature": pl.UInt32(),
    "cluster": pl.UInt32(),
    "cosine": pl.Float32(),
    "rank": pl.UInt32(),
}
"""By decoder direction. `cosine`: of the decoder row and the mean direction of its cluster's members;
`rank`: place among them, 0 the most central. Null: a decoder row of zeros."""

COACTIVATION_CLUSTERS: Schema = {
    "feature": pl.UInt32(),
    "cluster": pl.UInt32(),
    "strength": pl.Float32(),
    "rank": pl.UInt32(),
}
"""By co-activation. `strength`: NPMI added up over the neighbours in the same cluster; `rank` goes by it.
Null: a feature without a neighbour."""

DENSITY_CLUSTERS: Schema = {
    "feature": pl.UInt32(),
    "cluster": pl.UInt32(),
    "cosine": pl.Float32(),
    "rank": pl.UInt32(),
    "probability": pl.Float32(),
}
"""By density of decoder directions. `cosine`: of the decoder row and its cluster's mean direction;
`probability`: HDBSCAN's, null of a feature that was joined to its cluster afterwards. Null in `cluster`:
noise, or a decoder row of zeros."""

FEATURE_SUMMARY: Schema = {
    "cluster": pl.UInt32(),
    "size": pl.UInt32(),
    "cohesion": pl.Float64(),
    "share": pl.Float64(),
    "features": pl.List(pl.UInt32()),
    "contexts": pl.List(pl.UInt64()),
    "tokens": pl.List(pl.String()),
}
"""`share`: the cluster's part of all activations; `features`, `contexts`: the most central ones; `tokens`:
those that name it (`jobs.tables.clusters.naming`). `cohesion`: mean cosine; by co-activation the part of its
members' NPMI that is with one another."""

GROUP_SUMMARY: Schema = {
    "cluster": pl.UInt32(),
    "size": pl.UInt64(),
    "cohesion": pl.Float64(),
    "share": pl.Float64(),
    "features": pl.List(pl.UInt32()),
    "lifts": pl.List(pl.Float64()),
    "examples": pl.List(pl.UInt64()),
    "tokens": pl.List(pl.String()),
}
"""Of contexts and documents; then, for every label, `majority_<label>` and `majority_<label>_share`.
`share`: the cluster's part of all; `features`, `lifts`: `jobs.tables.clusters.groups.typical`; `examples`:
the most central contexts or documents."""

FEATURE_MAP: Schema = {
    "feature": pl.UInt32(),
    "x": pl.Float32(),
    "y": pl.Float32(),
    "n_active": pl.Int64(),
    "cluster": pl.UInt32(),
    "name": pl.String(),
    "by": pl.String(),
}
"""`by`: coactivation, or feature (by decoder direction) where there is no table `neighbours`; `cluster` and
`name`, its first tokens, are those of `<by>_clusters`."""


def group_schema(kind: Kind) -> Schema:
    """Of `context_clusters` or `document_clusters`, without labels; null where nothing is active.

    `similarity`: cosine with the centre that contexts are assigned by, the nearest one: the mean direction of
    its members at the last step of k-means, among the contexts in its sample.
    """
    return {kind: pl.UInt64(), "cluster": pl.UInt32(), "similarity": pl.Float32()}
