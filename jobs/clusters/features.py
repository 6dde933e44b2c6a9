"""Clusterings of features: by decoder direction, by co-activation, by density; and the tables of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from jobs.clusters.assignment import Described
from jobs.clusters.density import dense_groups, sample
from jobs.clusters.graph import communities, embedded, graph_of
from jobs.clusters.kmeans import NO_CLUSTER, assign, default_clusters, fit
from jobs.clusters.members import Members, tell
from jobs.clusters.naming import MOST_NAMED
from jobs.clusters.tables import COACTIVATION_CLUSTERS, DENSITY_CLUSTERS, FEATURE_CLUSTERS, FEATURE_SUMMARY
from jobs.console import say
from jobs.progress import counting
from pipeline.store import FeatureStore
from schemas.run_file import Cluster
from schemas.tables import Schema
from schemas.values import F32, F64, I64

FIT_FEATURES = 1 << 16
"""Features that k-means looks at; of more, the rest is assigned."""

CENTRAL_FEATURES = 10

WITHOUT_DIRECTION = "a decoder row without direction"


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
    vectors: F32 | None = None
    """Unit vectors [n, any] whose cosines go by what was clustered, for a map."""

    def of_each(self, d_sae: int) -> I64:
        """The cluster of every feature, int64 [F]."""
        clusters = np.full(d_sae, NO_CLUSTER, np.int64)
        clusters[self.features] = self.members.labels
        return clusters


def clusterings(
    store: FeatureStore, site: str, n_active: I64, units: F32 | None, config: Cluster
) -> Iterator[Clustering]:
    """All that can be made; what can not is said.

    `n_active` int64 [F] counts active rows; `units` are the decoder directions of the features that fired,
    float32 [n, d], None of a site without a decoder.
    """
    fired = np.flatnonzero(n_active)
    if units is not None:
        yield by_direction(
            site, fired, units, config.features or default_clusters(len(n_active)), config.seed
        )
    else:
        what = "a synthetic site has no decoder, so its features are not clustered by direction"
        say(f"[yellow]cluster[/] {site}: {what}")
    if found := by_coactivation(store, site, fired, config):
        yield found
    if units is not None:
        yield by_density(site, fired, units, config)


def by_direction(site: str, fired: I64, units: F32, clusters: int, seed: int) -> Clustering:
    """Spherical k-means of decoder directions; one that is 0 or not finite has no cluster."""
    with counting("cluster: features by decoder direction"):
        centres = fit(units[sample(units, FIT_FEATURES, seed)], clusters, seed)
        members = Members.of(*assign(units, centres), len(centres))
    tell(site, "features", members, clusters, WITHOUT_DIRECTION)
    return Clustering("feature", FEATURE_CLUSTERS, "cosine", fired, members, members.cohesion, vectors=units)


def by_coactivation(store: FeatureStore, site: str, fired: I64, config: Cluster) -> Clustering | None:
    """Communities of the graph of `neighbours`; None, and a sentence, where that is missing or stale."""
    if not store.has_table(site, "neighbours") or store.is_stale(site, "neighbours"):
        what = "is stale" if store.has_table(site, "neighbours") else "does not exist"
        say(
            f"[yellow]cluster[/] {site}: no clusters of features by co-activation, for the table neighbours "
            f"{what}: run `latentlake coactivation`, then `latentlake cluster`"
        )
        return None
    with counting("cluster: features by co-activation"):
        neighbours = store.scan_table(site, "neighbours").collect()
        graph = graph_of(neighbours, store.totals(site).counted_rows, store.site(site).d_sae)
        graph = graph[fired][:, fired]
        members, cohesion, modularity = communities(graph, config.resolution, config.seed)
        vectors = embedded(graph, config.seed)
    tell(site, "features by co-activation", members, without="no neighbour")
    say(f"[bold]cluster[/] {site}: modularity {modularity:.3f} at resolution {config.resolution:g}")
    return Clustering(
        "coactivation", COACTIVATION_CLUSTERS, "strength", fired, members, cohesion, vectors=vectors
    )


def by_density(site: str, fired: I64, units: F32, config: Cluster) -> Clustering:
    """HDBSCAN of decoder directions."""
    with counting("cluster: features by density"):
        members, probability = dense_groups(units, config.min_cluster_size, config.seed)
    tell(site, "features by density", members, without="no dense place")
    columns = {"probability": probability}
    return Clustering("density", DENSITY_CLUSTERS, "cosine", fired, members, members.cohesion, columns)


def feature_tables(
    found: Clustering, n_active: I64, described: Described, tokens: list[list[str]]
) -> dict[str, pl.DataFrame]:
    """Tables `<name>_clusters` and `<name>_cluster_summary`, over the features with `n_active` > 0."""
    members = found.members
    columns = {"feature": found.features, found.closeness: members.closeness, "rank": members.ranks()}
    rows = pl.DataFrame(columns | found.columns).fill_nan(None)
    rows = members.where_clustered(rows, *[name for name in rows.columns if name != "feature"])
    central, clusters = members.central(), len(members.order)
    named = min(clusters, MOST_NAMED)
    summary = {
        "cluster": np.arange(clusters),
        "size": members.sizes,
        "cohesion": found.cohesion,
        "share": members.add_up(n_active[found.features]) / max(n_active.sum(), 1),
        "features": [found.features[some[:CENTRAL_FEATURES]].tolist() for some in central],
        "contexts": [*described.central.of_each(named), *([] for _ in range(clusters - named))],
        "tokens": tokens,
    }
    return {
        f"{found.name}_clusters": rows.select(*found.schema).cast(pl.Schema(found.schema)),
        f"{found.name}_cluster_summary": pl.DataFrame(summary, schema=FEATURE_SUMMARY, strict=False),
    }
