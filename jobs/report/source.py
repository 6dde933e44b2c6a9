"""What the pages of features are made from, besides the rows of their tables: tokens, names, neighbours.

`work.Work` has it from the report's scratch folder, `jobs.explore.feature_page` from the store.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jobs.report.strips import standalone, visible
from pipeline.store.records.vocabulary import Vocabulary, shown

LONGEST_NAME = 80
"""Characters of a name that was given that are shown."""

Names = list[str | int]
"""How a feature is called: the name that it was given, if any, and the places of the tokens it fires on."""


class Source(ABC):
    """What is known of a site; a token is its place in a list of texts, which the page has."""

    missing: Mapping[str, str]
    """Tables that are not there, and the commands that make them."""
    cluster_names: Mapping[str, Sequence[str]]
    """Of each kind of clusters, what each cluster is called."""
    averaged: bool
    """Whether a row is the mean of a context, in which no token fires."""

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """That of the lake."""

    @abstractmethod
    def place(self, token: int) -> int | None:
        """Where a token stands in the list; None for one that has no text."""

    @abstractmethod
    def place_of_text(self, text: str) -> int | str:
        """Where a text stands in the list, or itself."""

    @abstractmethod
    def named(self, feature: int) -> Names:
        """How a feature is called."""

    @abstractmethod
    def around(self, feature: int) -> tuple[int | None, int | None]:
        """The features with a page before and after it."""

    def matched(self, table: str, feature: int) -> Any:  # noqa: ARG002 - of those that know more
        """How a page names the feature of another site that a table of matches has: by its number."""
        return str(feature)

    def address(self, window: Mapping[str, Any]) -> list[int]:  # noqa: ARG002 - of those that know more
        """The context and the row of an example where a page can lead to the whole context; else nothing."""
        return []

    def token(self, number: int) -> str:
        """A token as it is written where it stands by itself, not escaped."""
        return standalone(self.vocabulary.texts[number])

    def alone(self, numbers: Iterable[int]) -> list[int]:
        """Places of tokens that stand by themselves; those that have none are left out."""
        return [place for place in map(self.place, numbers) if place is not None]

    def pieces(
        self, ids: Sequence[int], values: Sequence[float], firing: int | None = None
    ) -> tuple[list[int | str], Sequence[float], int | None]:
        """Tokens that follow one another, with their activations, and which one fires.

        Those that share a character are one, and that one is its text, unless the text stands in the list.
        """
        if not self.vocabulary.is_split(ids):
            places = self.alone(ids)
            assert len(places) == len(ids), "every token of the lake has a text"
            return [*places], values, firing
        spans = shown(self.vocabulary.spans(ids), np.asarray(values, np.float32), firing)
        texts = map(visible, spans.texts)
        return [self.place_of_text(text) for text in texts], spans.values.tolist(), spans.firing


def shortened(name: str) -> str:
    """A name that was given, as it is shown."""
    return visible(name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…")
