"""The page of a feature, and what it shows as JSON."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse, JSONResponse

from jobs.explore.lake import Explored, Feature
from jobs.explore.steer import refusal

MOST_EXAMPLES = 200


def routes(lake: Explored) -> APIRouter:
    """The page, the data of each feature's, and its strongest rows under conditions."""
    router, store, pages = APIRouter(), lake.store, lake.feature_pages

    @router.get("/sites/{site}/feature", include_in_schema=False)
    def page(site: str) -> HTMLResponse:
        d_sae, steers = store.require_features(site).d_sae, not refusal(store, site)
        return lake.page(site, "feature", labels=store.lake.label_columns, d_sae=d_sae, steers=steers)

    @router.get("/api/sites/{site}/features/{feature}", response_model=dict[str, Any])
    def feature(site: str, feature: Feature) -> JSONResponse:
        """All that the page of a feature shows, section by section; a token is its place in `tokens`."""
        return JSONResponse(pages(site).page(feature))

    @router.get("/api/sites/{site}/features/{feature}/examples", response_model=dict[str, Any])
    def examples(
        site: str,
        feature: Feature,
        where: Annotated[list[str] | None, Query()] = None,
        k: Annotated[int, Query(ge=1, le=MOST_EXAMPLES)] = 10,
    ) -> JSONResponse:
        """The `k` strongest rows of a feature that fit all conditions `where` on labels of the corpus."""
        store.require_feature(site, feature)
        return JSONResponse(pages(site).examples(feature, where or (), k))

    return router
