"""Stars, names and notes: what people say of features, edited and listed; and what features are called."""

from __future__ import annotations

import io
import json
from typing import Annotated, Any

from fastapi import APIRouter, Body, Query
from fastapi.responses import HTMLResponse, JSONResponse, Response
from pydantic import BaseModel

from jobs.explore.feature_page import annotation_of
from jobs.explore.lake import Explored, Feature
from jobs.report.source import shortened
from jobs.terminal.json_lines import json_lines
from pipeline.store.records.annotations import amend, export_edits, import_edits
from schemas.errors import InputError

MOST_NAMES = 1000
"""Features whose names are read at once."""
MOST_BYTES = 1 << 26
"""Of edits that are imported at once."""


class Edit(BaseModel, extra="forbid"):
    """What a feature is to have; fields that are left out stay as they are."""

    star: bool | None = None
    name: str | None = None
    note: str | None = None
    author: str | None = None


def routes(lake: Explored) -> APIRouter:
    """The page of all annotations, and their JSON."""
    router, store = APIRouter(), lake.store

    @router.get("/sites/{site}/annotations", include_in_schema=False)
    def page(site: str) -> HTMLResponse:
        return lake.page(site, "annotations")

    @router.get("/api/sites/{site}/annotations", response_model=dict[str, Any])
    def listed(site: str) -> JSONResponse:
        """All features with a star, a name or a note, each with what it is called; then those of other SAEs.

        `problems`: files among the edits that are not edits, and are left out.
        """
        names = store.names(site)
        table, others, problems = names.annotations
        names.read(table["feature"].to_list())
        features = [
            row | {"called": shortened(names.name(row["feature"]))} for row in table.iter_rows(named=True)
        ]
        return JSONResponse({"features": features, "others": others.to_dicts(), "problems": list(problems)})

    @router.get("/api/sites/{site}/annotations.jsonl")
    def export(site: str) -> Response:
        """Every edit, a JSON object a line."""
        lines = (json.dumps(edit, ensure_ascii=False) + "\n" for edit in export_edits(store, site))
        name = f'attachment; filename="annotations-{store.require_features(site).name}.jsonl"'
        headers = {"content-disposition": name}
        return Response("".join(lines).encode(), headers=headers, media_type="application/jsonl")

    @router.post("/api/sites/{site}/annotations")
    def import_(site: str, edits: Annotated[bytes, Body(media_type="application/jsonl")]) -> dict[str, Any]:
        """Add edits, a JSON object a line, as an export has them; those that are there already stay."""
        lake.require_writable()
        if len(edits) > MOST_BYTES:
            raise InputError(f"the file has {len(edits):,} bytes: import at most {MOST_BYTES:,} at once")
        done = import_edits(store, site, json_lines(io.BytesIO(edits), "the file"))
        return done._asdict() | {"said": str(done)}

    @router.get("/api/sites/{site}/annotations/{feature}")
    def read(site: str, feature: Feature) -> dict[str, Any]:
        """The star, name and note of a feature."""
        store.require_feature(site, feature)
        return annotation_of(store.names(site), feature)

    @router.post("/api/sites/{site}/annotations/{feature}")
    def put(site: str, feature: Feature, edit: Edit) -> dict[str, Any]:
        """Change some of a feature's star, name and note; what it has then, and what it is called."""
        lake.require_writable()
        given = edit.model_dump(include=edit.model_fields_set)
        amend(store, site, feature, **given)
        names = store.names(site, [feature])
        called = {"called": shortened(names.name(feature)), "source": names.source(feature)}
        return annotation_of(names, feature) | called

    @router.get("/api/sites/{site}/names")
    def named(
        site: str, feature: Annotated[list[Feature], Query(max_length=MOST_NAMES)]
    ) -> dict[int, dict[str, str]]:
        """What some features are called, and where each name is from: annotation, explanation or tokens."""
        names = store.names(site, feature)
        return {n: {"name": shortened(names.name(n)), "source": names.source(n)} for n in feature}

    return router
