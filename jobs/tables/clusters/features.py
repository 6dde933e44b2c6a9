"""Clusterings of features: by decoder direction, by co-activation, by density; and the tables of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from jobs.tables.clusters.assignment import Described
from jobs.tables.clusters.density import dense_groups
from jobs.tables.clusters.graph import communities, embedded, graph_of
from jobs.tables.clusters.kmeans import NO_CLUSTER, default_clusters, fit
from jobs.tables.clusters.members import Members, report_clusters
from jobs.tables.clusters.naming import MOST_NAMED
from jobs.tables.clusters.rows import (
    Decoder,
    Rows,
    VectorsInMemory,
    assign_rows,
    cosines_with_mean,
    sample,
    take,
)
from jobs.tables.clusters.tables import (
    COACTIVATION_CLUSTERS,
    DENSITY_CLUSTERS,
    FEATURE_CLUSTERS,
    FEATURE_SUMMARY,
)
from jobs.tables.pairs.directions import directions_of
from jobs.terminal.console import say
from jobs.terminal.progress import counting
from pipeline.store import FeatureStore
from pipeline.tasks import Tasks
from schemas.run.file import Cluster
from schemas.tables.tables import Schema
from schemas.values import F32, F64, I64

FIT_FEATURES, FIT_BYTES = 1 << 16, 1 << 29
"""Features that k-means reads, at most, and the memory of their directions; the rest is assigned."""

CENTRAL_FEATURES = 10


@dataclass(frozen=True)
class Clustering:
    """One clustering of the features that fired, `features` int64 [n]; `members` are places in it.

    `name` begins its tables' names, `closeness` is what the members' closeness is called there, `cohesion`
    float64 [K] that of the summary, `columns` hold [n] more values.
    """

    name: str
    schema: Schema
    closeness: str
    features: I64
    members: Members
    cohesion: F64
    columns: dict[str, F32] = field(default_factory=dict)
    vectors: Rows | None = None
    """Unit vectors [n, any] whose cosines go by what was clustered, for a map."""

    def by_feature(self, d_sae: int) -> I64:
        """The cluster of every feature, int64 [F]."""
        clusters = np.full(d_sae, NO_CLUSTER, np.int64)
        clusters[self.features] = self.members.labels
        return clusters


def clusterings(
    store: FeatureStore, site: str, n_active: I64, config: Cluster, tasks: Tasks | None = None
) -> Iterator[Clustering]:
    """All that can be made of the features with `n_active` int64 [F] > 0; what cannot is reported."""
    fired, directions = np.flatnonzero(n_active), directions_of(store, site)
    decoder = Decoder(directions, fired) if directions.width is not None else None
    if decoder is not None:
        n_clusters = config.features or default_clusters(len(n_active))
        yield by_direction(site, decoder, n_clusters, config.seed, tasks)
    else:
        what = "a synthetic site has no decoder, so its features are not clustered by direction"
        say(f"[yellow]cluster[/] {site}: {what}")
    if coactivation := by_coactivation(store, site, fired, config):
        yield coactivation
    if decoder is not None:
        with counting("cluster: features by density"):
            members, probability = dense_groups(decoder, config.min_cluster_size, config.seed, tasks)
        report_clusters(site, "features by density", members, without="no dense place")
        columns, cohesion = {"probability": probability}, members.cohesion
        yield Clustering("density", DENSITY_CLUSTERS, "cosine", fired, members, cohesion, columns)


def by_direction(
    site: str, decoder: Decoder, clusters: int, seed: int, tasks: Tasks | None = None
) -> Clustering:
    """Spherical k-means of decoder directions; one that is 0 or not finite has no cluster."""
    with counting("cluster: features by decoder direction"):
        most = max(clusters, min(FIT_FEATURES, FIT_BYTES // (4 * decoder.width)))
        # k-means needs its vectors at once; the others are read by blocks, when they are assigned
        centres = fit(take(decoder, sample(decoder, most, seed)), clusters, seed)
        labels, _ = assign_rows(decoder, centres, tasks)
        cosine = cosines_with_mean(decoder, labels, len(centres))
        members = Members.of(labels, cosine, len(centres))
    if len(decoder) > most:
        say(
            f"[bold]cluster[/] {site}: centres by direction are computed from {most:,} features drawn at "
            "random"
        )
    report_clusters(site, "features", members, clusters, "a decoder row of zeros")
    features, cohesion = decoder.features, members.cohesion
    return Clustering("feature", FEATURE_CLUSTERS, "cosine", features, members, cohesion, vectors=decoder)


def by_coactivation(store: FeatureStore, site: str, fired: I64, config: Cluster) -> Clustering | None:
    """Communities of the graph of `neighbours`; None, and a sentence, where that is missing or stale."""
    if not store.has_table(site, "neighbours") or store.is_stale(site, "neighbours"):
        what = "is stale" if store.has_table(site, "neighbours") else "does not exist"
        say(
            f"[yellow]cluster[/] {site}: no clusters of features by co-activation, because the table "
            f"neighbours {what}: run `latentlake coactivation`, then `latentlake cluster`"
        )
        return None
    with counting("cluster: features by co-activation"):
        neighbours = store.scan_table(site, "neighbours").collect()
        graph = graph_of(neighbours, store.totals(site).counted_rows, store.site(site).d_sae)
        # clusterings number the features that fired, in their order
        graph = graph[fired][:, fired]
        members, cohesion, modularity = communities(graph, config.resolution, config.seed)
        vectors = embedded(graph, config.seed)
    report_clusters(site, "features by co-activation", members, without="no neighbour")
    say(f"[bold]cluster[/] {site}: modularity {modularity:.3f} at resolution {config.resolution:g}")
    return Clustering(
        "coactivation",
        COACTIVATION_CLUSTERS,
        "strength",
        fired,
        members,
        cohesion,
        vectors=VectorsInMemory(vectors),
    )


def feature_tables(
    clustering: Clustering, n_active: I64, described: Described, tokens: list[list[str]]
) -> dict[str, pl.DataFrame]:
    """Tables `<name>_clusters` and `<name>_cluster_summary`, over the features with `n_active` > 0."""
    members = clustering.members
    columns = {
        "feature": clustering.features,
        clustering.closeness: members.closeness,
        "rank": members.ranks(),
    }
    rows = pl.DataFrame(columns | clustering.columns).fill_nan(None)
    rows = members.where_clustered(rows, *[name for name in rows.columns if name != "feature"])
    central, clusters = members.central(), len(members.order)
    # only the largest clusters were given tokens and contexts: the lists of the others are empty
    named = min(clusters, MOST_NAMED)
    summary = {
        "cluster": np.arange(clusters),
        "size": members.sizes,
        "cohesion": clustering.cohesion,
        "share": members.add_up(n_active[clustering.features]) / max(n_active.sum(), 1),
        "features": [clustering.features[features[:CENTRAL_FEATURES]].tolist() for features in central],
        "contexts": [*described.central.by_cluster(named), *([] for _ in range(clusters - named))],
        "tokens": tokens,
    }
    return {
        f"{clustering.name}_clusters": rows.select(*clustering.schema).cast(pl.Schema(clustering.schema)),
        f"{clustering.name}_cluster_summary": pl.DataFrame(summary, schema=FEATURE_SUMMARY, strict=False),
    }
