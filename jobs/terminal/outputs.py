"""Files that a command writes outside the store: `--html`, `--figure`, `--out`, `--json`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pipeline.store.objects import local
from schemas.errors import InputError
from schemas.run.strict_yaml import dump_yaml


def require_file(path: Path | None, option: str) -> None:
    """InputError for a place where no file can be, before work is done for it; None will do."""
    if path is None:
        return
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not nearest.is_dir():
        raise InputError(
            f"{option} {path} cannot be a file: give a path that is not a folder, inside an existing folder"
        )
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


def write_once(out: Path, content: dict[str, Any]) -> Path:
    """A demo's run file as `run.yaml` in the folder; InputError where another one lies there."""
    out.mkdir(parents=True, exist_ok=True)
    path, text = out / "run.yaml", dump_yaml(content)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise InputError(
            f"{path} belongs to another demo, or was changed: run it with `latentlake run {path}`, or give "
            "--out another folder"
        )
    local.write_atomic(path, text.encode())
    return path
