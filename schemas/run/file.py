"""The run file: what to run, over what, into which store (frozen; an unknown key is an error)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from schemas.errors import InputError
from schemas.names import (
    SYNTHETIC,
)
from schemas.run.derive_sections import Cluster, Derive, Rank
from schemas.run.refusals import refusal
from schemas.run.section import PathText, Section
from schemas.run.sections import Corpus, Extract, Model, Site, Store, Tokens
from schemas.run.strict_yaml import read_yaml

__all__ = [
    "Cluster",
    "Corpus",
    "Derive",
    "Extract",
    "Model",
    "PathText",
    "Rank",
    "RunFile",
    "Section",
    "Site",
    "Store",
    "Tokens",
    "load_run_file",
    "parse_run_file",
]


class RunFile(Section):
    """A whole run file."""

    corpus: Corpus
    tokens: Tokens = Field(default_factory=lambda: Tokens.model_validate({}))
    model: Model
    sites: Annotated[tuple[Site, ...], Field(min_length=1)]
    store: Store
    extract: Extract = Field(default_factory=lambda: Extract.model_validate({}))
    rank: Rank = Field(default_factory=lambda: Rank.model_validate({}))
    cluster: Cluster = Field(default_factory=lambda: Cluster.model_validate({}))
    derive: Derive = Field(default_factory=lambda: Derive.model_validate({}))

    @model_validator(mode="after")
    def _names_are_distinct(self) -> RunFile:
        names = [site.name for site in self.sites if site.name]
        if len(set(names)) != len(names):
            raise ValueError(f"sites: two sites share a name among {names}; give each its own")
        return self

    @model_validator(mode="after")
    def _sites_are_the_models(self) -> RunFile:
        drawn = self.model.loader == "synthetic"
        for site in self.sites:
            if (site.sae or "").startswith(SYNTHETIC) != drawn:
                wants = "one that begins with 'synthetic:'" if drawn else "an SAE with weights"
                raise ValueError(
                    f"sites: model.loader: {self.model.loader} needs {wants}, but a site has {site.sae!r}"
                )
        return self

    @model_validator(mode="after")
    def _layouts_of_the_sites(self) -> RunFile:
        """What a site gives must have a layout."""
        layouts = self.store.layouts
        for site in self.sites:
            name = site.name or site.hook_name
            if site.sae is None and "dense" not in layouts:
                raise ValueError(
                    f"sites: {name!r} has no SAE, so only its x can be stored: give it `sae`, or add dense "
                    "to store.layouts"
                )
            if site.sae is not None and layouts == ("dense",):
                raise ValueError(
                    f"sites: {name!r} has an SAE, but store.layouts is only dense: leave `sae` out, or add "
                    "token_major or feature_major"
                )
        if "dense" in layouts and self.model.loader == "synthetic":
            raise ValueError("store.layouts: dense needs a model; model.loader: synthetic has no x")
        return self


def load_run_file(path: str | Path) -> RunFile:
    """Read and check a run file; every problem is reported in one sentence that names its place."""
    path = Path(path)
    try:
        content = read_yaml(path)
    except FileNotFoundError:
        raise InputError(f"run file {path} does not exist") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give the run file, which is a YAML file") from None
    if not isinstance(content, dict):
        raise InputError(f"run file {path} is not a mapping; it needs corpus, model, sites and store")
    return parse_run_file(content, str(path))


def parse_run_file(content: dict[str, Any], where: str) -> RunFile:
    """Check the content of a run file read from `where`."""
    try:
        return RunFile.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{where}: {refusal(RunFile, error)}") from None
