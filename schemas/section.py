"""What every section of the run file is made of."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def _path(text: str) -> str:
    """The path with ~ expanded; an empty one, or one with NUL, is no path."""
    if not text or "\0" in text:
        raise ValueError("must be a path, not empty and without NUL")
    return os.path.expanduser(text)  # noqa: PTH111 - it may be no path but a name


PathText = Annotated[str, AfterValidator(_path)]


class Section(BaseModel):
    """One section of the run file."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
