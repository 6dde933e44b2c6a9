"""What every JSON record of a store is: canonical, frozen, of a format version, its numbers in ranges."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from schemas.errors import InputError
from schemas.names import NAME

FORMAT_VERSION = 7

_KEY_ENDS = re.compile(rb'"\s*:')

Version = Annotated[int, Field(strict=True, ge=1)]
Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 62)]
Positive = Annotated[int, Field(strict=True, ge=1, lt=1 << 62)]
TokenId = Annotated[int, Field(strict=True, ge=0, lt=1 << 31)]
Position = Annotated[int, Field(strict=True, gt=-(1 << 31), lt=1 << 31)]
Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
LabelType = Annotated[str, Field(pattern="^(String|Int64|Float64|Boolean)$")]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Record(BaseModel):
    """A frozen JSON object; `to_json` is canonical, so equal records have equal bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> bytes:
        """Canonical bytes: sorted keys, no spaces beyond one newline at the end."""
        return canonical_json(self.model_dump(mode="json")) + b"\n"

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Self:
        """Read a record; a newer format, or damage, is one sentence that names the file."""
        try:
            content = parse_json(data)
        except ValueError:
            raise InputError(f"{where} is damaged (not JSON); restore it from a copy of the store") from None
        refuse_newer(content.get("format_version") if isinstance(content, dict) else None, where)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InputError(f"{where} is not a {cls.__name__}: {_first_problem(error)}") from None


def parse_json(data: bytes) -> Any:
    """JSON; ValueError where it is none, nested deeper than any record is, or has a key twice."""
    content = from_json(data)
    # each key has its colon: where there are no more colons than keys, no key can be there twice
    if len(_KEY_ENDS.findall(data)) != _keys(content):
        try:
            json.loads(data, object_pairs_hook=_unique)
        except RecursionError:
            raise ValueError("it is nested too deep") from None
    return content


def _keys(content: Any) -> int:
    """How many keys objects have, at any depth."""
    if isinstance(content, dict):
        return len(content) + sum(map(_keys, content.values()))
    return sum(map(_keys, content)) if isinstance(content, list) else 0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; ValueError for a key that is there twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice")
    return content


def _first_problem(error: ValidationError) -> str:
    """The first thing that is wrong with a record, and where."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}"[:200] if place else str(first["msg"])[:200]


def refuse_newer(version: Any, where: str) -> None:
    """Stop at a format version that this code does not know; older ones, and None, pass."""
    if version is None:
        return
    if type(version) is not int or version < 1:
        raise InputError(
            f"{where} has format version {str(version)[:40]!r}, which does not exist: restore it from a copy "
            "of the store"
        )
    if version > FORMAT_VERSION:
        raise InputError(
            f"{where} has format version {version}, this latentlake reads up to {FORMAT_VERSION}: "
            "update latentlake"
        )


def canonical_json(content: Any) -> bytes:
    """JSON with sorted keys and no white space."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest_of(content: Any) -> str:
    """sha256 of the canonical JSON of `content`, in hex."""
    return hashlib.sha256(canonical_json(content)).hexdigest()


def digest_of_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex; errors are the system's."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
