"""Files that a command is asked to write next to the store: `--html`, `--figure`, `--out`, `--json`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipeline.store.objects import local
from schemas.errors import InputError


def require_file(path: Path | None, option: str) -> None:
    """InputError for a place where no file can be, before work is done for it; None will do."""
    if path is None:
        return
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not nearest.is_dir():
        raise InputError(f"{option} {path} cannot be a file: give one that is not a folder and lies in one")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise InputError(
            f"{option} {path} cannot be written ({error.strerror}): give {option} another place"
        ) from None


def write_file(path: Path, data: bytes, option: str) -> None:
    """Write or replace a file whole; folders on the way are made. InputError names path and option."""
    require_file(path, option)
    local.write_atomic(path, data, f"give {option} another place")
