"""A fingerprint of what a file holds: its size and its ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from schemas.records import digest_of

_ENDS = 8 << 20
"""Bytes at either end of a file that its fingerprint covers."""


def fingerprint(path: Path) -> tuple[int, str]:
    """Size and sha256 of both ends of a file (of all of it, when the ends meet)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_ENDS))
        file.seek(max(_ENDS, size - _ENDS))
        digest.update(file.read(_ENDS))
    return size, digest.hexdigest()


def contents(fingerprints: Iterable[tuple[int, str]]) -> list[str]:
    """A short name for what each file with content holds, sorted."""
    return sorted({digest_of(fingerprint)[:16] for fingerprint in fingerprints if fingerprint[0]})
