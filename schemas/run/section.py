"""What every section of the run file is made of."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, field_validator

from schemas.sentences import NO_SECRETS, holds_secret


def _path(text: str) -> str:
    """The path with ~ expanded; an empty one, or one with NUL, is not a path."""
    if not text or "\0" in text:
        raise ValueError("must be a path, not empty and without NUL")
    if "://" in text and holds_secret(text):
        raise ValueError(NO_SECRETS)
    return os.path.expanduser(text)  # noqa: PTH111 - it may be no path but a name


PathText = Annotated[str, AfterValidator(_path)]


class Section(BaseModel):
    """One section of the run file: of exactly the types that its fields have, and numbers that are finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, strict=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_in_a_file(cls, value: Any) -> Any:
        """Sections are frozen and hold tuples, files hold lists; numbers have 64 bits."""
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError("numbers have 64 bits")
        return _frozen(value)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(part) for part in value) if isinstance(value, list) else value
