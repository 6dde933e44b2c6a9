"""The page that compares: two groups of documents, two features, two sites; and the answers as JSON."""

from __future__ import annotations

from functools import lru_cache
from threading import Lock
from typing import Annotated, Any

import numpy as np
import polars as pl
from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from jobs.explore.find import examples_at
from jobs.explore.lake import Explored, Feature
from jobs.report.source import shortened
from jobs.tables.diff import LEVEL, Side
from jobs.tables.match import SAME, table_name
from jobs.tables.pairs.association import MEASURES, PairCounts
from jobs.tables.pairs.directions import directions_of
from pipeline.statistics.documents.comparison import SUPPORT
from pipeline.store import FeatureStore
from pipeline.store.feature_store import strongest
from pipeline.store.reading.comparison import Compared, compare_groups
from pipeline.store.records.site import has_site_weights
from schemas.errors import InputError
from schemas.values import F32, U64

SHOWN = 5
"""Examples of each kind: rows in which both features fire, and one of them alone."""
KEPT = 8
"""Comparisons of groups that are kept."""

N = Annotated[int, Query(ge=1, le=1000)]
Condition = Annotated[str, Query(max_length=2000)]


def routes(lake: Explored) -> APIRouter:
    """The page and its answers."""
    router, store = APIRouter(), lake.store
    under_way: dict[tuple[str, str, str], int] = {}
    one_at_a_time = Lock()

    @lru_cache(KEPT)
    def compared(site: str, a: str, b: str) -> Compared:
        """A comparison, kept; while it is made, `under_way` counts its shards."""

        def advance(shards: int) -> None:
            under_way[site, a, b] += shards

        under_way[site, a, b] = 0
        try:
            return compare_groups(store, site, a, b, advance=advance)
        finally:
            under_way.pop((site, a, b), None)

    @router.get("/sites/{site}/compare", include_in_schema=False)
    def page(site: str) -> HTMLResponse:
        return lake.page(site, "compare", labels=store.lake.label_columns)

    @router.get("/api/sites/{site}/compare/groups")
    def groups(site: str, a: Condition, b: Condition, n: N = 50) -> dict[str, Any]:
        """The features in which two groups of documents differ most, by |z| of the frequency.

        z is clustered by document; q is Benjamini and Hochberg's over all features that were tested: those
        that chance alone would bring to `support` documents of the smaller group.
        """
        site = store.require_features(site).name
        with one_at_a_time:
            result = compared(site, a, b)
        return _groups(store, site, result, n)

    @router.get("/api/sites/{site}/compare/progress")
    def progress(site: str, a: Condition, b: Condition) -> dict[str, Any]:
        """How many shards of how many a comparison of groups has read; null: it is not being made now."""
        site = store.require_features(site).name
        return {"shards": under_way.get((site, a, b)), "of": len(store.committed(site))}

    @router.get("/api/sites/{site}/compare/features")
    def features(site: str, a: Feature, b: Feature) -> dict[str, Any]:
        """Two features: their statistics, how often they fire together, and strongest rows of each kind."""
        return _features(store, store.require_features(site).name, a, b)

    @router.get("/api/sites/{site}/compare/sites")
    def sites(site: str, other: str, n: N = 100) -> dict[str, Any]:
        """The pairs of the one-to-one assignment between two sites (`latentlake match`), the best first."""
        return _sites(store, store.require_features(site).name, store.require_features(other).name, n)

    return router


def _groups(store: FeatureStore, site: str, compared: Compared, n: int) -> dict[str, Any]:
    table, size = compared.table, pl.col("frequency_z").abs()
    tested = table.drop_nulls("frequency_z")
    first = tested.sort(size, "feature", descending=[True, False]).head(n)
    names = store.names(site, first["feature"])
    columns = (
        *("frequency_a", "frequency_b", "frequency_difference", "frequency_z", "frequency_q"),
        *("documents_a", "documents_b"),
    )
    return {
        **{
            side: {"documents": totals.documents, "rows": totals.rows}
            for side, totals in (("a", compared.a), ("b", compared.b))
        },
        "support": SUPPORT,
        "tested": tested.height,
        "clear": int((table["frequency_q"] < LEVEL).sum()),
        "columns": columns,
        "rows": [
            {"feature": feature, "name": shortened(names.name(feature)), "values": list(values)}
            for feature, *values in first.select("feature", *columns).iter_rows()
        ],
    }


def _features(store: FeatureStore, site: str, a: int, b: int) -> dict[str, Any]:
    for feature in (a, b):
        store.require_feature(site, feature)
    if a == b:
        raise InputError(f"feature {a} is given twice: give two")
    columns = ("n_active", "frequency", "mean_active", "max_activation")
    table = store.scan_features(site).filter(pl.col("feature").is_in([a, b])).collect().sort("feature")
    names = store.names(site, [a, b])
    (rows_a, values_a), (rows_b, values_b) = (store.rows_of(site, feature) for feature in (a, b))
    both, in_a, in_b = np.intersect1d(rows_a, rows_b, assume_unique=True, return_indices=True)
    only_a, only_b = (np.setdiff1d(np.arange(len(r)), i) for r, i in ((rows_a, in_a), (rows_b, in_b)))
    least = np.minimum(np.abs(values_a[in_a]), np.abs(values_b[in_b]))
    kinds = {
        "both": (both, least),
        "only_a": (rows_a[only_a], values_a[only_a]),
        "only_b": (rows_b[only_b], values_b[only_b]),
    }
    return {
        "columns": columns,
        "features": [
            {"feature": feature, "name": shortened(names.name(feature)), "values": list(values)}
            for feature, *values in (
                table.filter(pl.col("feature") == each).select("feature", *columns).row(0) for each in (a, b)
            )
        ],
        "measures": _measures(store, site, a, b, len(both), len(rows_a), len(rows_b)),
        "counts": {kind: len(rows) for kind, (rows, _) in kinds.items()},
        "examples": {kind: _strongest(store, site, *found) for kind, found in kinds.items()},
    }


def _measures(
    store: FeatureStore, site: str, a: int, b: int, n_both: int, n_a: int, n_b: int
) -> dict[str, float | None]:
    """How the two go together; None where that is not defined."""
    result: dict[str, float | None] = dict.fromkeys((*MEASURES, "cosine"))
    if n_both:
        counts = PairCounts(np.array([n_both]), n_a, np.array([n_b]), store.totals(site).counted_rows)
        for name, measure in MEASURES.items():
            value = float(measure(counts)[0])
            result[name] = value if np.isfinite(value) else None
    if has_site_weights(store.layout, store.site(site).pass_name, site):
        directions = directions_of(store, site)
        if directions.width is not None:
            (unit_a, has_a), (unit_b, has_b) = (directions.units(range(f, f + 1)) for f in (a, b))
            if has_a[0] and has_b[0]:
                result["cosine"] = float(np.clip(unit_a[0].astype(np.float64) @ unit_b[0], -1, 1))
    return result


def _strongest(store: FeatureStore, site: str, rows: U64, values: F32) -> list[dict[str, Any]]:
    """The strongest of some rows with the text around each; rows that are no tokens have none."""
    best = strongest(values, SHOWN)
    if not len(best) or not store.reads_tokens(site):
        return []
    return examples_at(store, pl.Series(rows[best], dtype=pl.UInt64))


def _sites(store: FeatureStore, site: str, other: str, n: int) -> dict[str, Any]:
    if site == other:
        raise InputError(f"site {site!r} is given twice: give two")
    name = table_name(Side(store, site), Side(store, other))
    if not store.has_table(site, name):
        raise InputError(f"the sites are not matched yet: run `latentlake match STORE {site} {other}`")
    table = store.scan_table(site, name).filter("assigned").collect()
    by = "cosine" if table["cosine"].null_count() < table.height else "jaccard"
    first = table.sort(by, "feature", descending=[True, False], nulls_last=True).head(n)
    names, others = store.names(site, first["feature"]), store.names(other, first["match"])
    values = table[by].drop_nulls()
    return {
        "pairs": table.height,
        "by": by,
        "median": values.median(),
        "level": SAME,
        "same": int((values >= SAME).sum()),
        "columns": ("cosine", "jaccard", "n_both"),
        "rows": [
            {
                "feature": feature,
                "name": shortened(names.name(feature)),
                "match": match,
                "match_name": shortened(others.name(match)),
                "values": list(rest),
            }
            for feature, match, *rest in first.select(
                "feature", "match", "cosine", "jaccard", "n_both"
            ).iter_rows()
        ],
    }
