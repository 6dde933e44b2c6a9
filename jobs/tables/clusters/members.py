"""Which things belong to which cluster, and how near its middle each of them is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from jobs.tables.clusters.kmeans import NO_CLUSTER, relabel
from jobs.terminal.console import say
from schemas.values import F32, F64, I64


@dataclass(frozen=True)
class Members:
    """Clusters 0 .. K - 1, largest first: each of n things' cluster (NO_CLUSTER: none) and closeness.

    `closeness` float32 [n] is larger for things nearer to the middle of their cluster: a cosine, or what the
    clustering has instead.
    """

    labels: I64
    closeness: F32
    order: I64
    """Numbers that the clusters had before they were ordered, int64 [K]."""

    @classmethod
    def of(cls, labels: I64, closeness: F32, clusters: int) -> Members:
        """Members of clusters 0 .. `clusters` - 1 in any order, some perhaps empty."""
        renumbered, order = relabel(labels, clusters)
        return cls(renumbered, closeness, order)

    @property
    def sizes(self) -> I64:
        """Members of each cluster, int64 [K]."""
        return self.add_up(np.ones(len(self.labels))).astype(np.int64)

    @property
    def cohesion(self) -> F64:
        """Mean closeness of each cluster's members, float64 [K]."""
        return self.add_up(self.closeness) / self.sizes

    def add_up(self, values: NDArray[Any]) -> F64:
        """Sum of `values` [n] over each cluster's members, in their order: float64 [K]."""
        has = self.labels != NO_CLUSTER
        sums = np.bincount(self.labels[has], weights=values[has], minlength=len(self.order))
        return sums.astype(np.float64)  # of nothing, bincount makes integers

    def central(self) -> list[I64]:
        """Members of each cluster, the most central first; equally central ones in their order."""
        has = np.flatnonzero(self.labels != NO_CLUSTER)
        members = has[np.lexsort((has, -self.closeness[has], self.labels[has]))]
        # sorted by cluster, so the sizes say where each begins
        return np.split(members, np.cumsum(self.sizes)[:-1]) if len(self.order) else []

    def ranks(self) -> I64:
        """Place of each thing among its cluster's members, the most central 0; 0 without a cluster: [n]."""
        rank = np.zeros(len(self.labels), np.int64)
        for places in self.central():
            rank[places] = np.arange(len(places))
        return rank

    def where_clustered(self, rows: pl.DataFrame, *names: str) -> pl.DataFrame:
        """The rows with a column `cluster`; null in it and in `names` where there is no cluster."""
        has = pl.col("cluster") != NO_CLUSTER
        rows = rows.with_columns(cluster=self.labels)
        return rows.with_columns(pl.when(has).then(pl.col(name)).alias(name) for name in ("cluster", *names))


def report_clusters(
    site: str, what: str, members: Members, requested: int | None = None, without: str = ""
) -> None:
    """Print one line: how many clusters, whether fewer than `requested`, how many are left out `without`."""
    n_clusters, has = len(members.order), int((members.labels != NO_CLUSTER).sum())
    line = f"[bold]cluster[/] {site}: {has:,} {what} in {n_clusters:,} clusters"
    if requested is not None and n_clusters < requested:
        line += f" [yellow]({requested} requested, but no more differ)[/]"
    if left_out := len(members.labels) - has:
        line += f" [yellow]({left_out:,} with {without} left out)[/]"
    say(line)
