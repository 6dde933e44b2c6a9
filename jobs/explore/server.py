"""The pages of the application, and the same as JSON below `/api`."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

import polars as pl
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, Field

from jobs.explore.typed import MOST_CHARACTERS, Texts
from jobs.report import page as report_page
from jobs.report.columns import packed
from jobs.report.strips import visible
from jobs.report.tables import CLUSTERS
from pipeline.evaluation.typed_text import Places
from pipeline.store import FeatureStore
from schemas import __version__
from schemas.errors import InputError

STATIC = {
    "report.css": ("jobs.report", "text/css"),
    "explore.css": ("jobs.explore", "text/css"),
    "text.js": ("jobs.explore", "text/javascript"),
    "map.js": ("jobs.explore", "text/javascript"),
}
"""Files that pages load: the package that has each in its folder `static`, and its type."""

Site = str
Feature = Annotated[int, Field(ge=0)]
By = Literal["activation", "surprise"]


class Typed(BaseModel):
    """A text to run."""

    text: str = Field(max_length=MOST_CHARACTERS)


@cache
def environment() -> Environment:
    """The application's templates, and those of the report; escaped as the report's are."""
    return report_page.environment().overlay(
        loader=ChoiceLoader([PackageLoader("jobs.explore"), PackageLoader("jobs.report")]),
        undefined=StrictUndefined,
    )


def create_app(store: FeatureStore, places: Places) -> FastAPI:
    """The application without its guard."""
    app = FastAPI(
        title="latentlake explore",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    texts = Texts(store, places)
    _add_pages(app, store)
    _add_texts(app, store, texts)

    @app.exception_handler(InputError)
    def refuse(_: Request, error: InputError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(RequestValidationError)
    def name_first(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    return app


def _add_pages(app: FastAPI, store: FeatureStore) -> None:
    sites = [name for name, site in store.sites.items() if site.has_sae]

    @app.get("/", include_in_schema=False)
    def home() -> RedirectResponse:
        return RedirectResponse(f"/sites/{sites[0]}/text" if sites else "/nothing", 303)

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return Response(status_code=204)

    @app.get("/static/{name}", include_in_schema=False)
    def static(name: str) -> Response:
        if name not in STATIC:
            return Response(status_code=404)
        package, kind = STATIC[name]
        return Response(files(package).joinpath("static", name).read_bytes(), media_type=kind)

    @app.get("/sites/{site}/text", include_in_schema=False)
    def text_page(site: Site) -> HTMLResponse:
        store.require_features(site)
        return _page("text.html", site=site, sites=sites, here="text", longest=MOST_CHARACTERS)

    @app.get("/sites/{site}/map", include_in_schema=False)
    def map_page(site: Site) -> HTMLResponse:
        store.require_features(site)
        return _page("map.html", site=site, sites=sites, here="map")

    @app.get("/api/sites/{site}/map")
    def feature_map(site: Site) -> dict[str, Any]:
        """The table `feature_map`: columns as little-endian numbers in base64, and names by cluster."""
        table = store.scan_table(site, "feature_map").collect()
        names = table.drop_nulls(["cluster", "name"]).unique("cluster").select("cluster", "name")
        return {
            "by": CLUSTERS[table["by"][0]] if table.height else "",
            "feature": packed(table["feature"].cast(pl.UInt32).to_numpy()),
            **{name: packed(table[name].cast(pl.Float32).to_numpy()) for name in ("x", "y")},
            "n_active": packed(table["n_active"].cast(pl.Float64).to_numpy()),
            "cluster": packed(table["cluster"].cast(pl.Int32).fill_null(-1).to_numpy()),
            "names": {str(cluster): visible(name) for cluster, name in names.iter_rows()},
        }


def _page(template: str, **values: Any) -> HTMLResponse:
    text = environment().get_template(template).render(**values)
    return HTMLResponse(text.encode("utf-8", "replace"))


def _add_texts(app: FastAPI, store: FeatureStore, texts: Texts) -> None:
    @app.get("/api/state")
    def state() -> dict[str, Any]:
        """Whether the model is running, or being loaded, and for how many seconds."""
        return texts.state()

    @app.post("/api/sites/{site}/texts")
    def run(site: Site, typed: Typed) -> dict[str, Any]:
        """Run a text through the model and the site's SAE: its number and pieces."""
        return texts.text(texts.run(store.require_features(site).name, typed.text))

    @app.post("/api/sites/{site}/contexts/{context}")
    def open_context(site: Site, context: Annotated[int, Field(ge=0)]) -> dict[str, Any]:
        """Open a stored context as if it had been typed: its number and pieces."""
        return texts.text(texts.open(store.require_features(site).name, context))

    @app.get("/api/texts/{number}")
    def text(number: int) -> dict[str, Any]:
        """The pieces of a text that ran."""
        return texts.text(number)

    @app.get("/api/texts/{number}/features")
    def active(
        number: int,
        piece: int | None = None,
        by: By = "activation",
        n: Annotated[int, Field(ge=1, le=1000)] = 30,
    ) -> dict[str, Any]:
        """The features that fire in a text, or in one of its pieces."""
        return texts.active(number, piece, by, n)

    @app.get("/api/texts/{number}/features/{feature}")
    def values(number: int, feature: Feature) -> dict[str, Any]:
        """A feature's activation at each piece of a text, and its largest in the store."""
        shown = texts.values(number, feature)
        return {"values": shown, "maximum": texts.maximum(texts.text(number)["site"], feature)}
