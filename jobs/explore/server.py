"""The application without its guard: the pages, and the same as JSON below `/api`."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response

from jobs.explore import annotation, clusters, compare, feature, feature_map, find, steer, text
from jobs.explore.lake import PAGES, Explored, ReadOnlyError
from schemas import __version__
from schemas.errors import InputError

STATIC = {
    "report.css": ("jobs.report", "text/css"),
    "common.js": ("jobs.report", "text/javascript"),
    "explore.css": ("jobs.explore", "text/css"),
    "ask.js": ("jobs.explore", "text/javascript"),
    "text.js": ("jobs.explore", "text/javascript"),
    "find.js": ("jobs.explore", "text/javascript"),
    "pages.js": ("jobs.report", "text/javascript"),
    "page.js": ("jobs.report", "text/javascript"),
    "feature.js": ("jobs.explore", "text/javascript"),
    "annotations.js": ("jobs.explore", "text/javascript"),
    "compare.js": ("jobs.explore", "text/javascript"),
    "map.js": ("jobs.explore", "text/javascript"),
    "steer.js": ("jobs.explore", "text/javascript"),
}
"""Files that pages load: the package that has each in its folder `static`, and its type."""


OPTION = re.compile(r"--(text|where|by|name) ")
"""How messages call what was given to a command, and here to a field of a page."""


def create_app(lake: Explored) -> FastAPI:
    """The application over a store with at least one site that has an SAE."""
    app = FastAPI(
        title="latentlake explore",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    for module in (text, find, feature, feature_map, clusters, compare, steer, annotation):
        app.include_router(module.routes(lake))

    @app.get("/", include_in_schema=False)
    def home() -> RedirectResponse:
        return RedirectResponse(f"/sites/{lake.sites[0]}/{next(iter(PAGES))}", 303)

    @app.get("/favicon.ico", include_in_schema=False)
    def icon() -> Response:
        return Response(status_code=204)

    @app.get("/static/{name}", include_in_schema=False)
    def static(name: str) -> Response:
        if name not in STATIC:
            return Response(status_code=404)
        package, kind = STATIC[name]
        return Response(files(package).joinpath("static", name).read_bytes(), media_type=kind)

    @app.exception_handler(InputError)
    def refuse(_: Request, error: InputError) -> JSONResponse:
        sentence = OPTION.sub(r"\1 ", str(error))
        return JSONResponse({"error": sentence}, 403 if isinstance(error, ReadOnlyError) else 400)

    @app.exception_handler(RequestValidationError)
    def name_first(_: Request, error: RequestValidationError) -> JSONResponse:
        first: dict[str, Any] = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg']}"}, 422)

    return app
