"""The page of the clusters of a site, of features, contexts and documents, and the same as JSON."""

from __future__ import annotations

from itertools import chain
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from jobs.explore.lake import Explored
from jobs.report.clusters import Kind, labels_of, listed, names_by_tokens
from jobs.report.source import shortened
from jobs.report.strips import visible
from jobs.report.tables import CLUSTERS, Tables
from pipeline.store import FeatureStore
from pipeline.store.records.registry import job_of

MOST = 1000
"""Clusters of a kind that are listed, the first of their table."""


def routes(lake: Explored) -> APIRouter:
    """The page and its rows."""
    router, store = APIRouter(), lake.store

    @router.get("/sites/{site}/clusters", include_in_schema=False)
    def page(site: str) -> HTMLResponse:
        missing = f"latentlake {job_of('feature_clusters')}"
        return lake.page(site, "clusters", kinds=_kinds(store, site), missing=missing)

    @router.get("/api/sites/{site}/clusters")
    def clusters(site: str) -> dict[str, Any]:
        """The clusters of each kind: size, name, and their central or typical features with names."""
        return {"kinds": _kinds(store, site)}

    return router


def _kinds(store: FeatureStore, site: str) -> list[dict[str, Any]]:
    """Of each kind that the site has, its clusters in the order of the table."""
    tables = Tables(store, store.require_features(site).name)
    kinds = []
    for name, title in CLUSTERS.items():
        summary = tables.summary(name)
        if summary is not None and f"{name}_clusters" in tables.names:
            first = summary.head(MOST)
            kind = Kind(name, title, first, None, names_by_tokens(first))
            kinds.append(_kind(store, tables, kind) | {"n": summary.height})
    return kinds


def _kind(store: FeatureStore, tables: Tables, kind: Kind) -> dict[str, Any]:
    """One kind; a value that a cluster has not is None."""
    clusters, labels = listed(kind), labels_of(kind.summary.columns)
    known = chain.from_iterable(row.get("features") or () for row in clusters)
    names = store.names(tables.site, sorted(set(known)))
    return {
        "kind": kind.name,
        "title": kind.title,
        "stale": store.is_stale(tables.site, f"{kind.name}_clusters"),
        "labels": labels,
        "clusters": [
            {
                **{name: row.get(name) for name in ("cluster", "size", "cohesion", "share")},
                "name": visible(row["name"]),
                "majority": {
                    label: (visible(value), share) for label, (value, share) in row["majority"].items()
                },
                "features": [
                    {"feature": feature, "name": shortened(names.name(feature))}
                    for feature in row.get("features") or ()
                ],
            }
            for row in clusters
        ],
    }
