"""The run file: what to run, over what, into which store (frozen; an unknown key is an error)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from schemas.errors import InputError
from schemas.run_sections import (
    PROCESSING,
    SYNTHETIC,
    ActivationDtype,
    CheckSae,
    Cluster,
    ContextsOf,
    Control,
    Corpus,
    DenseDtype,
    Derive,
    DerivedJob,
    EncodeDtype,
    Extract,
    Loader,
    Model,
    ModelDtype,
    Pooling,
    Rank,
    Site,
    SpecialText,
    SpecialTokenPolicy,
    Store,
    StoreLayout,
    Tokens,
)
from schemas.section import PathText, Section

__all__ = [
    "NAME",
    "PROCESSING",
    "SYNTHETIC",
    "ActivationDtype",
    "CheckSae",
    "Cluster",
    "ContextsOf",
    "Control",
    "Corpus",
    "DenseDtype",
    "Derive",
    "DerivedJob",
    "EncodeDtype",
    "Extract",
    "Loader",
    "Model",
    "ModelDtype",
    "PathText",
    "Pooling",
    "Rank",
    "RunFile",
    "Section",
    "Site",
    "SpecialText",
    "SpecialTokenPolicy",
    "Store",
    "StoreLayout",
    "Tokens",
    "check_name",
    "load_run_file",
    "parse_run_file",
]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


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
                    f"sites: model.loader: {self.model.loader} wants {wants}, but a site has {site.sae!r}"
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
                    f"sites: {name!r} has an SAE, but store.layouts is dense alone: leave `sae` out, or add "
                    "token_major or feature_major"
                )
        if "dense" in layouts and self.model.loader == "synthetic":
            raise ValueError("store.layouts: dense wants a model, model.loader: synthetic gives no x")
        return self


def check_name(name: str, what: str) -> str:
    """Return `name` when it is safe as a folder name, else raise InputError."""
    if not NAME.fullmatch(name):
        raise InputError(f"{what} {name!r} is no folder name: use letters, digits and . _ + - (at most 128)")
    return name


def load_run_file(path: str | Path) -> RunFile:
    """Read and check a run file; every problem is told in one sentence that names its place."""
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"run file {path} does not exist") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; give the run file, a file of YAML") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"run file {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"run file {path} holds no mapping; it needs corpus, model, sites and store")
    return parse_run_file(content, str(path))


def parse_run_file(content: dict[str, Any], where: str) -> RunFile:
    """Check the content of a run file read from `where`."""
    try:
        return RunFile.model_validate(content)
    except ValidationError as error:
        errors = _innermost(error.errors())
        unknown = [e for e in errors if e["type"] == "extra_forbidden"]
        raise InputError(f"{where}: " + "; ".join(_sentence(e) for e in unknown or errors)) from None


def _innermost(errors: Sequence[Any]) -> list[Any]:
    """Without those that only follow from another one further in, as that a list has too few valid items."""
    places = [tuple(e["loc"]) for e in errors]
    return [
        e for e, at in zip(errors, places, strict=True) if not any(p[: len(at)] == at != p for p in places)
    ]


def _sentence(error: Any) -> str:
    """One problem found by pydantic, in words."""
    place = ".".join(str(part) for part in error["loc"]) or "run file"
    if error["type"] == "extra_forbidden":
        return _unknown_key(error["loc"])
    if error["type"] == "missing":
        return f"{place} is missing"
    message: str = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and isinstance(error["input"], dict):
        return message  # of a whole section, which names its places itself
    return f"{place} is {error['input']!r}: {message[:1].lower()}{message[1:]}"


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, or a list of which it holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def _unknown_key(loc: tuple[str | int, ...]) -> str:
    """Name the key that is not known, and the nearest one that is."""
    model: type[BaseModel] = RunFile
    for part in loc[:-1]:
        if isinstance(part, str):
            model = _section_in(model.model_fields[part].annotation) or model
    known = [field.alias or name for name, field in model.model_fields.items()]
    near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
    place = "the run file" if len(loc) == 1 else ".".join(str(part) for part in loc[:-1])
    return f"unknown key {loc[-1]!r} in {place}; " + (
        f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    )
