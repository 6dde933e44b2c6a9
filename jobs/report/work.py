"""What the tasks that make pages share: where everything lies, and how a token or a feature is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from jobs.report.strips import standalone, visible
from pipeline.store.records.vocabulary import Vocabulary, shown
from schemas.layout import StorePath
from schemas.values import I32, I64

GIVEN = "given.json"
"""File of the scratch folder with the names that features were given."""
LONGEST_NAME = 80
"""Characters of one that are shown."""
FOLDER_SIZE = 1000
"""Pages in one folder: feature 12345 lies in features/12."""


@dataclass(frozen=True)
class Work:
    """All that a task needs to make pages of one site; what it reads it keeps, and does not hand on."""

    scratch: Path
    windows: tuple[Path, ...]
    out: StorePath
    """The site's folder in the report."""
    site: str
    vocabulary: StorePath
    d_sae: int
    missing: Mapping[str, str]
    """Tables that are not there, and the commands that make them."""
    cluster_names: Mapping[str, Sequence[str]]
    """Of each kind of feature clusters, what each cluster is called."""
    averaged: bool = False
    """Whether a row is the mean of a context, in which no token fires."""

    # Cached properties lie in __dict__ too: a task would be sent the whole vocabulary with its range.
    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def chosen(self) -> I64:
        """Features with a page, ascending."""
        features: I64 = np.load(self.scratch / "chosen.npy")
        return features

    @cached_property
    def names(self) -> I32:
        """Tokens on which each feature fires, int32 [d_sae, n], see `tables.names_of`."""
        tokens: I32 = np.load(self.scratch / "names.npy", mmap_mode="r")
        return tokens

    @cached_property
    def given(self) -> dict[str, str]:
        """Names that people or other tools have given, by the feature's number as text."""
        names: dict[str, str] = json.loads((self.scratch / GIVEN).read_bytes())
        return names

    @cached_property
    def texts(self) -> list[str]:
        """Each token as it is written where it stands by itself, not escaped."""
        return [standalone(text) for text in self._vocabulary.texts]

    def shown(
        self, ids: Sequence[int], values: Sequence[float], firing: int | None = None
    ) -> tuple[list[str], Sequence[float], int | None]:
        """Tokens that follow one another, as HTML, with their activations, and which one fires.

        Tokens that share a character are one.
        """
        if not self._vocabulary.is_split(ids):
            pieces = self._pieces
            return [pieces[token] for token in ids], values, firing
        spans = shown(self._vocabulary.spans(ids), np.asarray(values, np.float32), firing)
        return [html_of(text) for text in spans.texts], spans.values.tolist(), spans.firing

    @cached_property
    def _pieces(self) -> list[str]:
        """What each token puts into a strip, as HTML, where it shares no character."""
        return [html_of(text) for text in self._vocabulary.texts]

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary.read(self.vocabulary)

    @cached_property
    def _tokens(self) -> list[str]:
        return [f"<i>{escape(text)}</i>" for text in self.texts]

    @cached_property
    def _has_page(self) -> frozenset[int]:
        return frozenset(self.chosen.tolist())

    def tokens(self, numbers: Iterable[int]) -> Markup:
        """Tokens that stand by themselves, as HTML; -1 is none."""
        pieces = (self._tokens[number] for number in numbers if 0 <= number < len(self._tokens))
        return Markup("".join(pieces))  # noqa: S704 - made of escaped texts

    def fires_on(self, feature: int) -> Markup:
        """The name that somebody gave a feature, if any, and the tokens on which it fires, as HTML."""
        tokens = self.tokens(self.names[feature].tolist())
        if (name := self.given.get(str(feature))) is None:
            return tokens
        name = visible(name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…")
        return Markup(f"<b><bdi>{escape(name)}</bdi></b> ") + tokens  # noqa: S704 - escaped

    def link(self, feature: int, features: str) -> Markup:
        """The feature's number, linked to its page where it has one; `features` leads to the site's pages."""
        if feature not in self._has_page:
            return Markup(f'<s title="no page in this report">{feature}</s>')  # noqa: S704 - a number
        return Markup(f'<a href="{features}{path_of(feature)}">{feature}</a>')  # noqa: S704 - and our own path


def html_of(text: str) -> str:
    """Text as it is shown in a strip."""
    return str(escape(visible(text)))


def path_of(feature: int) -> str:
    """Where the page of a feature lies, below the site's folder `features`."""
    return f"{feature // FOLDER_SIZE}/{feature}.html"
