"""Contexts, and documents, by the features that fire in them: spherical k-means of their vectors.

k-means takes a sample of at most MOST of them, and all are then assigned to the nearest centre, shard by
shard: memory does not grow with their number. Centres are dense, 4 bytes x clusters x d_sae: 0.13 GB for 512
clusters of 65,536 features, 2 GB for those of a million.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl
from scipy import sparse

from jobs.tables.clusters.assignment import EXAMPLES, Counts, Fitted, Placed
from jobs.tables.clusters.kmeans import fit
from jobs.tables.clusters.members import Members
from jobs.tables.clusters.tables import GROUP_SUMMARY, group_schema
from jobs.tables.clusters.vectors import Kind, Sampled, unit_vectors
from pipeline.store import FeatureStore
from schemas.values import I64

MOST: Mapping[Kind, int] = {"context": 16_384, "document": 4_096}
"""Sampled for k-means; a document has far more features than a context."""

TYPICAL_FEATURES = 10
TYPICAL_SHARE = 0.1
"""Share of a cluster's contexts in which a typical feature is active: lift alone favours rarities."""


def fit_groups(sampled: Sampled, clusters: int, seed: int) -> Fitted:
    """Centres of at most `clusters` clusters of the sample."""
    weights = sampled.weights()
    sample = unit_vectors(sampled.sample, weights)
    return Fitted(fit(sample[np.diff(sample.indptr) > 0], clusters, seed), weights)


def group_tables(
    kind: Kind,
    placed: Placed,
    members: Members,
    counts: Counts,
    labels: pl.DataFrame,
    tokens: list[list[str]],
) -> dict[str, pl.DataFrame]:
    """Tables `context_clusters` and `context_cluster_summary`, or those of documents.

    `similarity` is the cosine of the vector (see `vectors`) and the cluster's centre, null, as `cluster` is,
    where nothing is active; `labels` (see `labels_of`) follow it. In the summary `features` and
    `lifts` are the typical ones, see `typical`, `examples` the most central contexts, and of every label the
    `majority`.
    """
    rows = pl.DataFrame({kind: placed.number, "similarity": placed.cosine})
    schema = group_schema(kind)
    rows = members.where_clustered(rows, "similarity").select(*schema).cast(pl.Schema(schema))
    rows = rows.join(labels, on=kind, how="left", maintain_order="left")
    # counts go by the numbers that clusters had, members by their size
    features, lifts = typical(counts.active[members.order], members.sizes)
    summary = {
        "cluster": np.arange(len(members.order)),
        "size": members.sizes,
        "cohesion": members.cohesion,
        "share": members.sizes / max(len(placed.number), 1),
        "features": features,
        "lifts": lifts,
        "examples": [placed.number[places[:EXAMPLES]].tolist() for places in members.central()],
        "tokens": tokens,
    }
    frame = pl.DataFrame(summary, schema=GROUP_SUMMARY, strict=False)
    for label in rows.columns[len(schema) :]:
        frame = frame.join(majority(rows, label), on="cluster", how="left", maintain_order="left")
    return {f"{kind}_clusters": rows, f"{kind}_cluster_summary": frame}


def labels_of(store: FeatureStore, kind: Kind) -> pl.DataFrame:
    """The labels of each context (null where its documents differ), or of each document."""
    labels = list(store.lake.label_columns)
    if kind == "context":
        return store.scan_tokens().select("context", *labels).collect()
    # a document that goes on in the next context has a segment in both
    segments = store.scan_tokens().select(pl.col("segments").explode()).unnest("segments")
    return segments.select("document", *labels).unique("document", keep="any").collect()


def typical(active: sparse.csr_matrix | I64, sizes: I64) -> tuple[list[list[int]], list[list[float]]]:
    """The features of highest lift of each cluster, and their lifts; equal ones by feature.

    `active` int64 [K, F] counts the cluster's contexts in which a feature is active, `sizes` int64 [K] all
    of them. Lift is the share of the cluster's contexts in which the feature is active over the same share
    of all contexts that have a cluster. Only features active in TYPICAL_SHARE of the cluster's contexts
    count.
    """
    active = sparse.csr_matrix(active)
    # a feature that is active nowhere has no share; at least 1 keeps the division from it
    overall = np.maximum(np.asarray(active.sum(axis=0)).ravel(), 1) / max(sizes.sum(), 1)
    features, lifts = [], []
    for cluster, size in enumerate(sizes):
        counts = active[cluster].toarray().ravel()
        often = np.flatnonzero(counts >= max(TYPICAL_SHARE * size, 1))
        lift = counts[often] / size / overall[often]
        best = np.lexsort((often, -lift))[:TYPICAL_FEATURES]
        features.append(often[best].tolist())
        lifts.append(lift[best].tolist())
    return features, lifts


def majority(rows: pl.DataFrame, label: str) -> pl.DataFrame:
    """The commonest value of a label in each cluster (of equally common ones the least), and its share.

    Columns cluster, majority_<label>, majority_<label>_share: of the cluster's contexts that have the label.
    """
    has = rows.filter(pl.col("cluster").is_not_null(), pl.col(label).is_not_null())
    counts = has.group_by("cluster", pl.col(label).alias("value")).len()
    # the commonest first, of equally common ones the least: what `first` takes below
    best = counts.sort("cluster", "len", "value", descending=[False, True, False])
    return best.group_by("cluster", maintain_order=True).agg(
        pl.col("value").first().alias(f"majority_{label}"),
        (pl.col("len").first() / pl.col("len").sum()).alias(f"majority_{label}_share"),
    )
