"""The page of typed texts and stored contexts, and what fires in them as JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from jobs.explore.lake import Explored, Feature
from jobs.explore.typed import MOST_CHARACTERS

By = Literal["activation", "surprise"]


class Typed(BaseModel):
    """A text to run."""

    text: str = Field(max_length=MOST_CHARACTERS)


def routes(lake: Explored) -> APIRouter:
    """The page, its texts and their features."""
    router, store, texts = APIRouter(), lake.store, lake.texts

    @router.get("/sites/{site}/text", include_in_schema=False)
    def page(site: str) -> HTMLResponse:
        return lake.page(site, "text", longest=MOST_CHARACTERS)

    @router.get("/api/state")
    def state() -> dict[str, Any]:
        """Whether the model is running, or being loaded, and for how many seconds."""
        return texts.state()

    @router.post("/api/sites/{site}/texts")
    def run(site: str, typed: Typed) -> dict[str, Any]:
        """Run a text through the model and the site's SAE: its number and pieces."""
        return texts.text(texts.run(store.require_features(site).name, typed.text))

    @router.post("/api/sites/{site}/contexts/{context}")
    def open_context(site: str, context: Annotated[int, Field(ge=0)]) -> dict[str, Any]:
        """Open a stored context as if it had been typed: its number and pieces."""
        return texts.text(texts.open(store.require_features(site).name, context))

    @router.get("/api/texts/{number}")
    def text(number: int) -> dict[str, Any]:
        """The pieces of a text that ran."""
        return texts.text(number)

    @router.get("/api/texts/{number}/features")
    def active(
        number: int,
        piece: int | None = None,
        by: By = "activation",
        n: Annotated[int, Field(ge=1, le=1000)] = 30,
    ) -> dict[str, Any]:
        """The features that fire in a text, or in one of its pieces."""
        return texts.active(number, piece, by, n)

    @router.get("/api/texts/{number}/features/{feature}")
    def values(number: int, feature: Feature) -> dict[str, Any]:
        """A feature's activation at each piece of a text, and its largest |activation| in the store."""
        return texts.values(number, feature)

    return router
