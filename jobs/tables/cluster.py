"""`latentlake cluster STORE`: which features belong together, which contexts, which documents.

Features by decoder direction (spherical k-means), by co-activation (Leiden on the table `neighbours`) and by
density of directions (HDBSCAN), and their map; contexts and documents by the features that fire in them. All
of it takes two readings of the activations, shard by shard: what fires where, then what is in which cluster
and on which tokens.
"""

from __future__ import annotations

import time

import numpy as np
import polars as pl
from scipy import sparse

from jobs.tables.clusters.assignment import assign_all
from jobs.tables.clusters.features import clusterings, feature_tables
from jobs.tables.clusters.groups import MOST, fit_groups, group_tables, labels_of
from jobs.tables.clusters.kmeans import default_clusters
from jobs.tables.clusters.members import Members, report_clusters
from jobs.tables.clusters.naming import naming_tokens
from jobs.tables.clusters.placing import feature_map
from jobs.tables.clusters.tables import FEATURE_MAP
from jobs.tables.clusters.vectors import KINDS, Kind, survey
from jobs.terminal.console import say
from jobs.terminal.progress import counting
from pipeline.store import FeatureStore
from pipeline.store.reading.site_access import require_committed
from pipeline.tasks import OneProcess, Tasks
from schemas.layout import StorePath
from schemas.run.file import Cluster, RunFile

MAPPED = ("coactivation", "feature")
"""The clustering that the map shows, the first there is: directions are nearly orthogonal, and of their map a
tenth of the structure is left (of a feature's 10 nearest on the demo's, 14 % are in its cluster; of those by
co-activation 71 %)."""


def command(
    store: FeatureStore, site: str, tasks: Tasks | None = None, run_file: RunFile | None = None
) -> None:
    """Cluster as the run file's section says."""
    cluster(store, site, run_file.cluster if run_file else Cluster.model_validate({}), tasks)


def cluster(store: FeatureStore, site: str, config: Cluster, tasks: Tasks | None = None) -> list[StorePath]:
    """Write the tables of clusters of a site (`jobs.tables.clusters.tables`), and the map of its features.

    The numbers of clusters by direction, of contexts and of documents are those of `config`, or about
    sqrt(n) / 2, at most 512; fewer where there is less to cluster, which is reported. Clusters are numbered
    by size, the largest 0. What the site has no decoder for, or no table `neighbours`, is reported and left
    out. The same store and seed give the same bytes for any number of threads and workers. Raises InputError
    when no shard is committed.
    """
    began = time.monotonic()
    require_committed(store, site)
    store.token_texts([])  # a vocabulary that cannot be read is reported before the work, not after
    tasks = tasks or OneProcess()
    surveyed = survey(store, site, MOST, config.seed, tasks)
    feature_clusterings = list(clusterings(store, site, surveyed.n_active, config, tasks))
    n_clusters: dict[Kind, int] = {
        kind: getattr(config, f"{kind}s") or default_clusters(surveyed.of[kind].number) for kind in KINDS
    }
    with counting("cluster: contexts and documents"):
        fitted = {kind: fit_groups(surveyed.of[kind], n_clusters[kind], config.seed) for kind in KINDS}
    cluster_of_feature = {
        clustering.name: clustering.by_feature(len(surveyed.n_active)) for clustering in feature_clusterings
    }
    assigned = assign_all(store, site, fitted, cluster_of_feature, tasks)
    # where nothing fires, or has a direction, the map is empty
    tables = {"feature_map": pl.DataFrame(schema=FEATURE_MAP)}
    names: dict[str, list[list[str]]] = {}
    for clustering in feature_clusterings:
        described = assigned.features[clustering.name]
        names[clustering.name] = _tokens(store, described.tokens, len(clustering.members.order))
        tables |= feature_tables(clustering, surveyed.n_active, described, names[clustering.name])
    if mapped := next(
        (c for name in MAPPED for c in feature_clusterings if c.name == name and len(c.members.order)), None
    ):
        of_map = feature_map(site, mapped, surveyed.n_active, names[mapped.name], config.seed)
        tables["feature_map"] = of_map
    for kind in KINDS:
        placed, counts = assigned.placed[kind], assigned.counts[kind]
        members = Members.of(placed.label, placed.cosine, counts.active.shape[0])
        report_clusters(site, f"{kind}s", members, n_clusters[kind], "nothing active")
        # the counts of clusters in their new order, and after them the last row, which is that of all tokens
        counted = counts.tokens[np.append(members.order, counts.tokens.shape[0] - 1)]
        tokens = _tokens(store, counted, len(members.order))
        tables |= group_tables(kind, placed, members, counts, labels_of(store, kind), tokens)
    say(f"[bold]cluster[/] {site}: {time.monotonic() - began:.1f} s")
    return [store.write_table(site, name, table) for name, table in tables.items()]


def _tokens(store: FeatureStore, counts: sparse.csr_matrix, clusters: int) -> list[list[str]]:
    """The tokens that name each cluster, as text; none of those after the first MOST_NAMED."""
    named = [store.token_texts(ids.tolist()) for ids in naming_tokens(counts)]
    return [*named, *([] for _ in range(clusters - len(named)))]
