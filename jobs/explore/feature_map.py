"""The page of the stored map of a site's features, and its points as JSON."""

from __future__ import annotations

from typing import Any

import polars as pl
from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from jobs.explore.lake import Explored
from jobs.report.columns import packed
from jobs.report.strips import visible
from jobs.report.tables import CLUSTERS


def routes(lake: Explored) -> APIRouter:
    """The page and its points."""
    router = APIRouter()

    @router.get("/sites/{site}/map", include_in_schema=False)
    def page(site: str) -> HTMLResponse:
        return lake.page(site, "map")

    @router.get("/api/sites/{site}/map")
    def feature_map(site: str) -> dict[str, Any]:
        """The table `feature_map`: columns as little-endian numbers in base64, and names by cluster."""
        table = lake.store.scan_table(site, "feature_map").collect()
        names = table.drop_nulls(["cluster", "name"]).unique("cluster").select("cluster", "name")
        return {
            "by": CLUSTERS[table["by"][0]] if table.height else "",
            "feature": packed(table["feature"].cast(pl.UInt32).to_numpy()),
            **{name: packed(table[name].cast(pl.Float32).to_numpy()) for name in ("x", "y")},
            "n_active": packed(table["n_active"].cast(pl.Float64).to_numpy()),
            "cluster": packed(table["cluster"].cast(pl.Int32).fill_null(-1).to_numpy()),
            "names": {str(cluster): visible(name) for cluster, name in names.iter_rows()},
        }

    return router
