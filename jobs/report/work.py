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

from jobs.report.source import Names, Source, shortened
from jobs.report.strips import standalone, visible
from pipeline.store.records.vocabulary import Vocabulary, shown
from schemas.layout import StorePath
from schemas.values import I32, I64

CHUNK = 128
"""Pages in one file: features/<k>.js has those of chosen[128 * k : 128 * (k + 1)], and clusters/<kind>/<k>.js
those of as many clusters."""

REDIRECTED = 1000
"""A site of so many pages at most also has a file at each page's old place, which leads to the page."""

GIVEN = "given.json"
"""File of the scratch folder with the names that features were given."""


@dataclass(frozen=True)
class Work(Source):
    """All that a task needs to make pages of one site; what it reads it keeps, and does not hand on."""

    scratch: Path
    windows: tuple[Path, ...]
    out: StorePath
    """The site's folder in the report."""
    site: str
    vocabulary_path: StorePath
    d_sae: int
    missing: Mapping[str, str]
    cluster_names: Mapping[str, Sequence[str]]
    averaged: bool = False
    key: str = ""
    """A digest of `index`, by which a page knows that a file of pages was written with the index it has."""

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
        return [standalone(text) for text in self.vocabulary.texts]

    def text(self, ids: Sequence[int]) -> str:
        """The text of tokens that follow one another."""
        texts = shown(self.vocabulary.spans(ids), np.zeros(len(ids), np.float32), None).texts
        return "".join(map(visible, texts))

    def place(self, token: int) -> int | None:
        """Where a token stands in `order`."""
        return self._places.get(token)

    def place_of_text(self, text: str) -> int | str:
        """Where the first token with this text stands in `order`, or the text."""
        return self._place_of_text.get(text, text)

    def around(self, feature: int) -> tuple[int | None, int | None]:
        """Those of `chosen`, which the feature is one of."""
        place = int(np.searchsorted(self.chosen, feature))
        before = int(self.chosen[place - 1]) if place else None
        return before, int(self.chosen[place + 1]) if place + 1 < len(self.chosen) else None

    @cached_property
    def order(self) -> list[int]:
        """The tokens that the pages of features name, the most frequent first."""
        tokens = np.load(self.scratch / "order.npy")
        known: list[int] = tokens[tokens < len(self.vocabulary)].tolist()  # a model may have more logits
        return known

    @cached_property
    def index(self) -> dict[str, Any]:
        """What holds for all pages of features and clusters: which there are, and the texts of tokens."""
        return {
            "site": self.site,
            "features": self.d_sae,
            "chunk": CHUNK,
            "chosen": None if len(self.chosen) == self.d_sae else self.chosen.tolist(),
            "clusters": {kind: len(names) for kind, names in self.cluster_names.items()},
            "tokens": [visible(self.vocabulary.texts[token]) for token in self.order],
        }

    @cached_property
    def _places(self) -> dict[int, int]:
        return {token: place for place, token in enumerate(self.order)}

    @cached_property
    def _place_of_text(self) -> dict[str, int]:
        texts = self.index["tokens"]
        return {text: place for place, text in reversed(list(enumerate(texts)))}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """That of the lake."""
        return Vocabulary.read(self.vocabulary_path)

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

    def named(self, feature: int) -> Names:
        """The name that a feature was given, if any, and the places in `order` of the tokens it fires on."""
        tokens = self.alone(self.names[feature].tolist())
        name = self.given.get(str(feature))
        return [*tokens] if name is None else [shortened(name), *tokens]

    def fires_on(self, feature: int) -> Markup:
        """The same as HTML."""
        name = "".join(
            f"<b><bdi>{escape(part)}</bdi></b> " for part in self.named(feature) if isinstance(part, str)
        )
        return Markup(name) + self.tokens(self.names[feature].tolist())  # noqa: S704 - escaped

    def link(self, feature: int, site: str) -> Markup:
        """The feature's number, linked to its page where it has one; `site` leads to the site's folder."""
        if feature not in self._has_page:
            return Markup(f'<s title="no page in this report">{feature}</s>')  # noqa: S704 - a number
        return Markup(f'<a href="{site}feature.html#{feature}">{feature}</a>')  # noqa: S704 - and our own path

    @property
    def has_redirects(self) -> bool:
        """Whether links to pages of earlier reports still lead somewhere."""
        return len(self.chosen) + sum(map(len, self.cluster_names.values())) <= REDIRECTED


def chunk_path(folder: str, n: int) -> str:
    """Where a file of pages lies, below the site's folder."""
    return f"{folder}/{n}.js"


def old_place(feature: int) -> str:
    """Where the page of a feature lay up to version 0.7, below the site's folder."""
    return f"features/{feature // 1000}/{feature}.html"


def old_place_of_cluster(kind: str, cluster: int) -> str:
    """Where the page of a cluster lay up to version 0.7."""
    return f"clusters/{kind}/{cluster}.html"
