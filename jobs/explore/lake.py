"""What every page of the application is made from: the store, the typed texts, the templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Annotated, Any

from fastapi.responses import HTMLResponse
from jinja2 import ChoiceLoader, Environment, PackageLoader
from pydantic import Field

from jobs.explore.steered import Steerings
from jobs.explore.typed import Texts
from jobs.report import page as report_page
from pipeline.evaluation.typed_text import Places
from pipeline.store import FeatureStore

PAGES: Mapping[str, str] = {"text": "Text", "map": "Map", "steer": "Steer"}
"""Pages of a site: the last part of the address, `/sites/{site}/{page}`, and what links to it say."""

Feature = Annotated[int, Field(ge=0)]
"""The number of a feature in an address."""


@dataclass(frozen=True)
class Explored:
    """A store that is being explored."""

    store: FeatureStore
    places: Places
    """Where model, SAE and tokenizer lie now."""

    @cached_property
    def sites(self) -> list[str]:
        """The sites with an SAE; others have no features."""
        return [name for name, site in self.store.sites.items() if site.has_sae]

    @cached_property
    def texts(self) -> Texts:
        """The texts typed so far."""
        return Texts(self.store, self.places)

    @cached_property
    def steerings(self) -> Steerings:
        """The prompts that were continued so far."""
        return Steerings(self.store, self.texts)

    def page(self, site: str, here: str, **values: Any) -> HTMLResponse:
        """The page of PAGES with this name; InputError where the site has no features."""
        self.store.require_features(site)
        shown = {"site": site, "sites": self.sites, "pages": PAGES, "here": here, "base": "/"}
        text = environment().get_template(f"{here}.html").render(**shown, **values)
        return HTMLResponse(text.encode("utf-8", "replace"))


@cache
def environment() -> Environment:
    """The templates of the report and those of the application, which extend them; escaped alike."""
    both = ChoiceLoader([PackageLoader("jobs.explore"), PackageLoader("jobs.report")])
    return report_page.environment().overlay(loader=both)
