"""The page on which a model continues a prompt with features changed, and the same as JSON."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from jobs.explore.lake import Explored, Feature
from jobs.explore.typed import MOST_CHARACTERS
from jobs.report.source import shortened
from pipeline.evaluation.steering import MOST_SEED, Change, Operation, Sampling, require_text
from pipeline.store import FeatureStore
from schemas.errors import InputError

MOST_CHANGES, MOST_TOKENS, MOST_TEMPERATURE = 32, 1000, 100


class Changed(BaseModel):
    """A change of one feature."""

    feature: Feature
    operation: Operation = "set"
    value: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """In units of activations; of `scale` a factor; `ablate` has none."""


class Prompt(BaseModel):
    """A prompt to continue, and how."""

    prompt: str = Field(max_length=MOST_CHARACTERS)
    changes: list[Changed] = Field(min_length=1, max_length=MOST_CHANGES)
    n_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] = 40
    temperature: Annotated[float, Field(ge=0, le=MOST_TEMPERATURE, allow_inf_nan=False)] = 0.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=MOST_SEED)] = 0


def routes(lake: Explored) -> APIRouter:
    """The page, prompts and their continuations."""
    router, store, steerings = APIRouter(), lake.store, lake.steerings

    @router.get("/sites/{site}/steer", include_in_schema=False)
    def page(site: str) -> HTMLResponse:
        return lake.page(
            site, "steer", longest=MOST_CHARACTERS, most_tokens=MOST_TOKENS, refused=refusal(store, site)
        )

    @router.post("/api/sites/{site}/steer")
    def start(site: str, prompt: Prompt) -> dict[str, Any]:
        """Continue a prompt, as the model is and with features changed; in the background.

        The answer has the number with which `/api/steerings/{steering}` says how far it is.
        """
        changes = [Change(change.feature, change.operation, change.value) for change in prompt.changes]
        sampling = Sampling(prompt.n_tokens, prompt.temperature, prompt.top_k, prompt.seed)
        return steerings.state(steerings.start(site, prompt.prompt, changes, sampling))

    @router.get("/api/sites/{site}/steer/{feature}")
    def scale(site: str, feature: Feature) -> dict[str, Any]:
        """A feature's name, and its largest |activation| in the store (0: it never fires), to steer by."""
        name = shortened(store.names(site, [feature]).name(feature))
        return {"feature": feature, "name": name, "maximum": store.largest_activation(site, feature)}

    @router.get("/api/steerings/{steering}")
    def state(steering: int) -> dict[str, Any]:
        """What was written so far; when it is `done`, its two texts with their pieces, plain first.

        Their features are those of `/api/texts/{number}/features`, as they were before they were changed.
        """
        return steerings.state(steering)

    @router.delete("/api/steerings/{steering}")
    def cancel(steering: int) -> dict[str, Any]:
        """Write no further token; what was written stays."""
        steerings.cancel(steering)
        return steerings.state(steering)

    return router


def refusal(store: FeatureStore, site: str) -> str:
    """Why the site's model cannot write, as far as the store says; "" where it can."""
    try:
        require_text(store, site)
    except InputError as error:
        return str(error)
    return ""
