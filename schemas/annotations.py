"""The JSON record of what a person says of a feature: one edit, of one or several of its fields."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from schemas.record import FORMAT_VERSION, Count, Name, Record, Version, canonical_json
from schemas.records import MOST_FEATURES

EDITED = ("star", "name", "note")
"""Fields that an edit may have; those that it has not stay as they were."""
LONGEST_NAME, LONGEST_NOTE = 200, 10_000
"""Characters."""
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_CONTROL_IN_LINES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Surrogates, which are no text, count too; a note may have line ends and tabs."""


def _checked(longest: int, refused: re.Pattern[str], text: str) -> str:
    """The text; ValueError where it is too long, or has control characters."""
    if len(text) > longest:
        raise ValueError(f"it has {len(text):,} characters: shorten it to {longest:,}")
    if control := refused.search(text):
        raise ValueError(f"it has the control character {control[0]!r}: leave that out")
    return text


_Line = Annotated[str, AfterValidator(partial(_checked, LONGEST_NAME, _CONTROL))]
_Lines = Annotated[str, AfterValidator(partial(_checked, LONGEST_NOTE, _CONTROL_IN_LINES))]


class Annotation(Record):
    """annotations/<site>/<time>-<id>.json: one edit. Of a feature and field the latest counts."""

    format_version: Version = FORMAT_VERSION
    site: Name
    feature: Annotated[Count, Field(lt=MOST_FEATURES)]
    sae_digest: _Line
    """That of the site's SAE: a feature of another SAE is another feature."""
    time: Annotated[str, Field(pattern="^[0-9]{8}T[0-9]{6}[.][0-9]{6}Z$")]
    """When, in UTC, as 20260131T120000.000000Z: times sort as texts."""
    author: _Line | None = None
    star: Annotated[bool, Field(strict=True)] | None = None
    """false or null: it has no star any more."""
    name: _Line | None = None
    """One line; null: it has no name any more."""
    note: _Lines | None = None
    """Lines; null: it has no note any more."""

    @model_validator(mode="after")
    def _edits(self) -> Self:
        if not self.model_fields_set.intersection(EDITED):
            raise ValueError(f"it edits none of {', '.join(EDITED)}")
        return self

    @property
    def edits(self) -> dict[str, Any]:
        """The fields that it edits, with their values."""
        return {name: getattr(self, name) for name in EDITED if name in self.model_fields_set}

    def content(self) -> dict[str, Any]:
        """As JSON holds it: without the fields that it leaves as they were."""
        content = self.model_dump(mode="json")
        return {name: content[name] for name in content if name not in EDITED or name in self.edits}

    def to_json(self) -> bytes:
        """Canonical bytes of `content`."""
        return canonical_json(self.content()) + b"\n"
