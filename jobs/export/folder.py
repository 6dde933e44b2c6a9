"""Where an export goes: a folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.store import FeatureStore
from pipeline.store.objects.local import fsync_tree, storage_errors, temporary_path
from schemas import __version__
from schemas.errors import InputError
from schemas.layout import is_stray

RECORD = "export.json"
"""Says what an export was made from; a folder that holds one may be replaced by another export."""


@contextlib.contextmanager
def new_export(out: str, store: FeatureStore, about: dict[str, Any]) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when the block ends well; else nothing is left of it.

    `about` (what was exported) stands in export.json, with the digest of each site's receipts. InputError
    where `out` is a URL, a file, or a folder that holds anything but a former export, which is replaced. (For
    a moment between two renames neither the former one nor the new one has the name.)
    """
    path = _checked(out)
    temporary = temporary_path(path)
    with storage_errors(path, "give another --out"):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            digests = {site: store.receipts_digest(site) for site in about["sites"]}
            holds = sorted(entry.name for entry in temporary.iterdir())
            record = {"latentlake": __version__, **about, "receipts": digests, "holds": holds}
            (temporary / RECORD).write_text(json.dumps(record, indent=1) + "\n")
            fsync_tree(temporary)
            _replace(path, temporary)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _checked(out: str) -> Path:
    if "://" in out:
        raise InputError(f"--out {out}: an export is written to a folder of this machine; copy it from there")
    path = Path(out).absolute()
    if path.is_dir():
        entries = {entry.name for entry in path.iterdir() if not is_stray(entry.name)}
        if others := sorted(entries - _exported(path)):
            raise InputError(
                f"--out {out} holds {others[0]!r}, which no former export wrote (its {RECORD} would say so): "
                "give a new folder, or empty this one"
            )
    elif path.exists() or path.is_symlink():
        raise InputError(f"--out {out} is a file: give a folder")
    return path


def _exported(path: Path) -> set[str]:
    """Names in a folder that a former export says it wrote."""
    try:
        record = json.loads((path / RECORD).read_bytes())
        return {RECORD, *map(str, record["holds"])}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _replace(path: Path, temporary: Path) -> None:
    former = temporary_path(path)
    if path.exists():
        path.rename(former)
    temporary.rename(path)
    shutil.rmtree(former, ignore_errors=True)


def safe_name(text: str) -> str:
    """`text` as a folder's name: other characters than letters, digits and . _ + - become _."""
    kept = "".join(c if (c.isascii() and c.isalnum()) or c in "._+-" else "_" for c in text).lstrip(".")
    return kept[:128] or "_"


def distinct_names(texts: Sequence[str], instead: Sequence[str]) -> list[str]:
    """A folder's name for each text; for texts that share one, `instead`'s."""
    names = [safe_name(text) for text in texts]
    return [
        own if names.count(own) == 1 else safe_name(other) for own, other in zip(names, instead, strict=True)
    ]
