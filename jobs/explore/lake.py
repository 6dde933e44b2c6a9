"""What every page of the application is made from: the store, the typed texts, the templates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Annotated, Any

from fastapi.responses import HTMLResponse
from jinja2 import ChoiceLoader, Environment, PackageLoader
from pydantic import Field

from jobs.explore.feature_page import FeaturePages
from jobs.explore.steered import Steerings
from jobs.explore.typed import Texts
from jobs.report import page as report_page
from pipeline.evaluation.typed_text import Places
from pipeline.store import FeatureStore
from schemas.errors import InputError

PAGES: Mapping[str, str] = {
    "text": "Text",
    "find": "Find",
    "feature": "Feature",
    "map": "Map",
    "clusters": "Clusters",
    "compare": "Compare",
    "steer": "Steer",
    "annotations": "Annotations",
}
"""Pages of a site: the last part of the address, `/sites/{site}/{page}`, and what links to it say."""

Feature = Annotated[int, Field(ge=0)]
"""The number of a feature in an address."""


MOST_NAMES = 1 << 18
"""Features of a site whose names are read ahead: some 200 bytes each."""


class ReadOnlyError(InputError):
    """What is requested would write to the store, which is only read."""


@dataclass(frozen=True)
class Explored:
    """A store that is being explored."""

    store: FeatureStore
    places: Places
    """Where model, SAE and tokenizer lie now."""
    read_only: bool = False
    """Whether stars, names and notes cannot be changed."""

    @cached_property
    def feature_pages(self) -> Callable[[str], FeaturePages]:
        """The pages of the features of a site; InputError where it has none."""
        return cache(partial(FeaturePages, self.store))

    def read_ahead(self) -> None:
        """Read what every page of a feature needs, so that the first one comes as quickly as the others."""
        with suppress(InputError):  # the pages say what is wrong
            for site in self.sites:
                self.feature_pages(site).open()
            self.store.read_contexts()
            for site in self.sites:
                if (d_sae := self.store.site(site).d_sae) <= MOST_NAMES:
                    self.store.names(site, range(d_sae))

    def require_writable(self) -> None:
        """ReadOnlyError where nothing may be written."""
        if self.read_only:
            raise ReadOnlyError(
                "this store is explored with --read-only: start `latentlake explore` without it to edit"
            )

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
        shown: dict[str, Any] = {
            "site": site,
            "sites": self.sites,
            "pages": PAGES,
            "here": here,
            "base": "/",
            "read_only": self.read_only,
        }
        text = environment().get_template(f"{here}.html").render(**shown, **values)
        return HTMLResponse(text.encode("utf-8", "replace"))


@cache
def environment() -> Environment:
    """The templates of the report and those of the application, which extend them; escaped alike."""
    both = ChoiceLoader([PackageLoader("jobs.explore"), PackageLoader("jobs.report")])
    return report_page.environment().overlay(loader=both)
