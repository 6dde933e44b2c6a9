"""The model of a synthetic lake: none. What fires is drawn by `pipeline.synthetic`."""

from __future__ import annotations

from typing import NoReturn

from schemas.errors import InputError
from schemas.run import file as run_file


def digest(path: str) -> str:  # noqa: ARG001 - there is no model
    """There is nothing to digest: the recipes of the sites say it all."""
    return "synthetic"


def max_context(path: str) -> None:
    """Contexts may have any size."""


def load(model: run_file.Model, hooks: list[str], device: str) -> NoReturn:  # noqa: ARG001
    """InputError: nothing can be run."""
    raise InputError("model.loader: synthetic is not a model that can be run: name another")
