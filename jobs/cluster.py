"""`latentlake cluster STORE`: features by decoder direction, contexts by the features that fire in them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from jobs.console import say
from jobs.context_vectors import Survey, context_sums, survey, unit_vectors
from jobs.kmeans import NO_CLUSTER, assign, default_clusters, fit, relabel, unit_rows
from pipeline.executors.tasks import OneProcess, Tasks
from pipeline.store import FeatureStore
from pipeline.store.shard_files import ShardFiles
from schemas.errors import InputError
from schemas.layout import Layout, StorePath
from schemas.records import Lake
from schemas.run_file import Cluster
from schemas.tables import Schema
from schemas.values import F32, F64, I64

FIT_CONTEXTS = 16_384
"""Contexts that k-means looks at; the rest is assigned to its clusters, so memory does not grow with it."""

CENTRAL_FEATURES, TYPICAL_FEATURES, EXAMPLE_CONTEXTS = 10, 10, 5

TYPICAL_SHARE = 0.1
"""Share of a cluster's contexts in which a typical feature is active: lift alone favours rarities."""

FEATURE_CLUSTERS: Schema = {
    "feature": pl.UInt32(),
    "cluster": pl.UInt32(),
    "cosine": pl.Float32(),
    "rank": pl.UInt32(),
}
FEATURE_CLUSTER_SUMMARY: Schema = {
    "cluster": pl.UInt32(),
    "size": pl.UInt32(),
    "cohesion": pl.Float64(),
    "share": pl.Float64(),
    "features": pl.List(pl.UInt32()),
}
CONTEXT_CLUSTERS: Schema = {"context": pl.UInt64(), "cluster": pl.UInt32(), "similarity": pl.Float32()}
CONTEXT_CLUSTER_SUMMARY: Schema = {
    "cluster": pl.UInt32(),
    "size": pl.UInt64(),
    "cohesion": pl.Float64(),
    "share": pl.Float64(),
    "features": pl.List(pl.UInt32()),
    "lifts": pl.List(pl.Float64()),
    "examples": pl.List(pl.UInt64()),
}


@dataclass(frozen=True)
class Members:
    """Clusters 0 .. K - 1, largest first: each of n things' cluster (NO_CLUSTER: none) and cosine."""

    labels: I64
    cosine: F32
    order: I64
    """Numbers that the clusters had before they were ordered, int64 [K]."""

    @property
    def sizes(self) -> I64:
        """Members of each cluster, int64 [K]."""
        return self.add_up(np.ones(len(self.labels))).astype(np.int64)

    def add_up(self, values: NDArray[Any]) -> F64:
        """Sum of `values` [n] over each cluster's members, in their order: float64 [K]."""
        has = self.labels != NO_CLUSTER
        return np.bincount(self.labels[has], weights=values[has], minlength=len(self.order)).astype(
            np.float64
        )

    def central(self) -> list[I64]:
        """Members of each cluster, the most central first; equally central ones in their order."""
        has = np.flatnonzero(self.labels != NO_CLUSTER)
        members = has[np.lexsort((has, -self.cosine[has], self.labels[has]))]
        return np.split(members, np.cumsum(self.sizes)[:-1]) if len(self.order) else []


def cluster(store: FeatureStore, site: str, config: Cluster, tasks: Tasks | None = None) -> list[StorePath]:
    """Write the tables of feature and context clusters of a site.

    The numbers of clusters are those of `config`, or about sqrt(d_sae) / 2 and sqrt(contexts) / 2, at most
    512; fewer where there is less to cluster, which is said. Clusters are numbered by size, the largest 0.
    The same store and seed give the same bytes for any number of threads. Raises InputError when no shard is
    committed.
    """
    began = time.monotonic()
    if not store.committed(site):
        raise InputError(f"site {site!r} has no committed shard: run `latentlake extract` first")
    tasks = tasks or OneProcess()
    known = survey(store, site, FIT_CONTEXTS, config.seed, tasks)
    tables = feature_tables(store, site, known.n_active, config)
    tables |= context_tables(store, site, known, config, tasks)
    say(f"[bold]cluster[/] {site}: {time.monotonic() - began:.1f} s")
    return [store.write_table(site, name, table) for name, table in tables.items()]


def feature_tables(store: FeatureStore, site: str, n_active: I64, config: Cluster) -> dict[str, pl.DataFrame]:
    """Tables `feature_clusters` and `feature_cluster_summary`, over the features with `n_active` > 0.

    `cosine` is that of the decoder row and its centre, `rank` the place among the cluster's members,
    0 the most central; `cohesion` is the mean cosine, `share` the cluster's part of all activations, and
    `features` are the most central ones. A feature whose decoder row is 0 or not finite has no cluster
    (null). There are no tables of a synthetic site, which has no decoder.
    """
    weights, _ = store.site_weights(site)
    if "W_dec" not in weights:
        say(f"[yellow]cluster[/] {site}: a synthetic site has no decoder, so its features are not clustered")
        return {}
    fired = np.flatnonzero(n_active)
    units, _ = unit_rows(weights["W_dec"][fired])
    members = clustered(units, config.features or default_clusters(len(n_active)), config.seed)
    _tell(site, "features", members, config.features or default_clusters(len(n_active)))
    central = members.central()
    rank = np.zeros(len(fired), np.int64)
    for some in central:
        rank[some] = np.arange(len(some))
    rows = pl.DataFrame({"feature": fired, **_columns(members, "cosine"), "rank": rank})
    summary = _summary(members) | {
        "share": members.add_up(n_active[fired]) / max(n_active.sum(), 1),
        "features": [fired[some[:CENTRAL_FEATURES]].tolist() for some in central],
    }
    return {
        "feature_clusters": _where_clustered(rows, "cosine", "rank").cast(pl.Schema(FEATURE_CLUSTERS)),
        "feature_cluster_summary": pl.DataFrame(summary, schema=FEATURE_CLUSTER_SUMMARY, strict=False),
    }


def clustered(units: F32, clusters: int, seed: int) -> Members:
    """Cluster unit vectors, all of them looked at."""
    centres = fit(units[units.any(axis=1)], clusters, seed)
    labels, cosine = assign(units, centres)
    labels, order = relabel(labels, len(centres))
    return Members(labels, cosine, order)


def context_tables(
    store: FeatureStore, site: str, known: Survey, config: Cluster, tasks: Tasks
) -> dict[str, pl.DataFrame]:
    """Tables `context_clusters` and `context_cluster_summary`, over all contexts of the committed shards.

    A context in which nothing is active has no cluster (null). `similarity` is the cosine of its vector (see
    `context_vectors`) and the centre; labels stand beside it. In the summary `features` and `lifts` are the
    typical ones, see `typical`, `examples` the most central contexts, and of every label the `majority`.
    """
    asked = config.contexts or default_clusters(known.contexts)
    weights = known.weights()
    sample = unit_vectors(known.sample, weights)
    centres = fit(sample[np.diff(sample.indptr) > 0], asked, config.seed)
    numbers, members, active = _assign_all(store, site, centres, weights, tasks)
    _tell(site, "contexts", members, asked)
    features, lifts = typical(active, members.sizes)
    rows = pl.DataFrame({"context": numbers, **_columns(members, "similarity")})
    rows = _where_clustered(rows, "similarity").cast(pl.Schema(CONTEXT_CLUSTERS))
    labels = list(store.lake.label_columns)
    if labels:
        told = store.scan_tokens().select("context", *labels).collect()
        rows = rows.join(told, on="context", how="left", maintain_order="left", suffix="_label")
    examples = [numbers[some[:EXAMPLE_CONTEXTS]].tolist() for some in members.central()]
    summary = _summary(members) | {
        "share": members.sizes / max(len(numbers), 1),
        "features": features,
        "lifts": lifts,
        "examples": examples,
    }
    frame = pl.DataFrame(summary, schema=CONTEXT_CLUSTER_SUMMARY, strict=False)
    for label in rows.columns[len(CONTEXT_CLUSTERS) :]:
        frame = frame.join(majority(rows, label), on="cluster", how="left", maintain_order="left")
    return {"context_clusters": rows, "context_cluster_summary": frame}


def _assign_all(
    store: FeatureStore, site: str, centres: F32, weights: F64, tasks: Tasks
) -> tuple[I64, Members, I64]:
    """Number and cluster of each context; in how many contexts of a cluster a feature is active [K, F]."""
    numbers, labels, cosines = [], [], []
    active = np.zeros((len(centres), len(weights)), np.int64)
    shards = store.shard_files(site)
    assign_shard = partial(_assign_shard, store.layout, store.lake, centres, weights)
    for shard, (label, cosine, present) in zip(shards, tasks.map(assign_shard, shards), strict=True):
        row = np.repeat(np.arange(len(centres)), np.diff(present.indptr))
        active[row, present.indices] += present.data
        numbers.append(shard.record.context_start + np.arange(len(label)))
        labels.append(label)
        cosines.append(cosine)
    renumbered, order = relabel(np.concatenate(labels), len(centres))
    return np.concatenate(numbers), Members(renumbered, np.concatenate(cosines), order), active[order]


def _assign_shard(
    layout: Layout, lake: Lake, centres: F32, weights: F64, shard: ShardFiles
) -> tuple[I64, F32, sparse.csr_matrix]:
    """Cluster and cosine of each context; in how many contexts of a cluster a feature is active [K, F]."""
    _, sums = context_sums(layout, lake, shard)
    label, cosine = assign(unit_vectors(sums, weights), centres)
    has = label != NO_CLUSTER
    pairs = (np.ones(has.sum(), np.int64), (label[has], np.flatnonzero(has)))
    present = sparse.csr_matrix((np.ones(sums.nnz, np.int64), sums.indices, sums.indptr), shape=sums.shape)
    return label, cosine, sparse.csr_matrix(pairs, shape=(len(centres), len(label))) @ present


def typical(active: I64, sizes: I64) -> tuple[list[list[int]], list[list[float]]]:
    """The features of highest lift of each cluster, and their lifts; equal ones by feature.

    `active` int64 [K, F] counts the cluster's contexts in which a feature is active, `sizes` int64 [K] all
    of them. Lift is the share of the cluster's contexts in which the feature is active over the same share
    of all contexts that have a cluster. Only features active in TYPICAL_SHARE of the cluster's contexts
    count.
    """
    overall = np.maximum(active.sum(axis=0), 1) / max(sizes.sum(), 1)
    features, lifts = [], []
    for counts, size in zip(active, sizes, strict=True):
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
    best = counts.sort("cluster", "len", "value", descending=[False, True, False])
    return best.group_by("cluster", maintain_order=True).agg(
        pl.col("value").first().alias(f"majority_{label}"),
        (pl.col("len").first() / pl.col("len").sum()).alias(f"majority_{label}_share"),
    )


def _columns(members: Members, similarity: str) -> dict[str, I64 | F32]:
    return {"cluster": members.labels, similarity: members.cosine}


def _where_clustered(rows: pl.DataFrame, *names: str) -> pl.DataFrame:
    """Null in `cluster` and in `names` where there is no cluster."""
    has = pl.col("cluster") != NO_CLUSTER
    return rows.with_columns(pl.when(has).then(pl.col(name)).alias(name) for name in ("cluster", *names))


def _summary(members: Members) -> dict[str, I64 | F64]:
    """What both summaries begin with."""
    sizes = members.sizes
    return {
        "cluster": np.arange(len(sizes)),
        "size": sizes,
        "cohesion": members.add_up(members.cosine) / sizes,
    }


def _tell(site: str, what: str, members: Members, asked: int) -> None:
    """One line on what came; what is less than asked for, and what was left out, is said."""
    found, has = len(members.order), int((members.labels != NO_CLUSTER).sum())
    line = f"[bold]cluster[/] {site}: {has:,} {what} in {found} clusters"
    if found < asked:
        line += f" [yellow]({asked} asked for: there are no more that differ)[/]"
    if left_out := len(members.labels) - has:
        reason = "a decoder row without direction" if what == "features" else "nothing active"
        line += f" [yellow]({left_out:,} with {reason} left out)[/]"
    say(line)


if __name__ == "__main__":
    import sys

    from jobs.cli import main

    main(["cluster", *sys.argv[1:]])
