"""Where an export goes: a folder that appears whole or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from jobs.tables.selection import select_features
from jobs.terminal.console import say
from pipeline.store import FeatureStore
from pipeline.store.objects.local import fsync_tree, storage_errors, temporary_path
from pipeline.store.reading.site_access import require_committed
from schemas import __version__
from schemas.errors import InputError
from schemas.layout import is_stray
from schemas.values import U32

Out = Annotated[
    str,
    typer.Option("--out", metavar="DIR", help="New folder, or that of an earlier export, which is replaced."),
]
Features = Annotated[
    str,
    typer.Option(
        "--features", help="all, numbers and ranges (1,5,10:20), top:N:COLUMN, or ranks COLUMN:START:STOP."
    ),
]
Window = Annotated[
    int,
    typer.Option(
        help="Largest number of tokens shown per example; shorter contexts are shown whole.", min=2, max=4096
    ),
]
Layer = Annotated[
    int | None, typer.Option(help="Layer of the site. Default: the number in the name of its hook.", min=0)
]


@dataclass
class Export:
    """The features chosen of each site, the folder to fill, and what is reported of each site at the end."""

    chosen: dict[str, U32]
    folder: Path
    reports: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def exporting(
    store: FeatureStore, sites: Sequence[str], out: str, kind: str, features: str
) -> Iterator[Export]:
    """Choose the features and make the folder; report what was written at the end."""
    began = time.monotonic()
    for site in sites:
        require_committed(store, site)
    chosen = {site: select_features(store, site, features) for site in sites}
    with new_export(out, store, {"format": kind, "sites": list(sites), "features": features}) as folder:
        export = Export(chosen, folder)
        yield export
    for site, report in export.reports.items():
        say(f"[bold]export[/] {kind} {site}: {len(chosen[site]):,} features, {report}")
    say(f"written to {escape(out)} ({time.monotonic() - began:.1f} s)")


RECORD = "export.json"
"""Says what an export was made from; a folder that holds one may be replaced by another export."""


@contextlib.contextmanager
def new_export(out: str, store: FeatureStore, about: dict[str, Any]) -> Iterator[Path]:
    """A folder to write into, which becomes `out` when the block ends well; else nothing is left of it.

    `about` (what was exported) stands in export.json, with the digest of each site's receipts. InputError
    where `out` is a URL, a file, or a folder that holds anything but an earlier export, which is replaced.
    (For a moment between two renames neither the earlier one nor the new one has the name.)
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
            former = temporary_path(path)
            if path.exists():
                path.rename(former)
            temporary.rename(path)
            shutil.rmtree(former, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _checked(out: str) -> Path:
    if "://" in out:
        raise InputError(f"--out {out}: an export is written to a local folder; copy it from there")
    path = Path(out).absolute()
    if path.is_dir():
        entries = {entry.name for entry in path.iterdir() if not is_stray(entry.name)}
        former = set[str]()  # names that an earlier export says it wrote
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            former = {RECORD, *map(str, json.loads((path / RECORD).read_bytes())["holds"])}
        if others := sorted(entries - former):
            raise InputError(
                f"--out {out} holds {others[0]!r}, which no earlier export wrote (its {RECORD} would say "
                "so): give a new folder, or empty this one"
            )
    elif path.exists() or path.is_symlink():
        raise InputError(f"--out {out} is a file: give a folder")
    return path


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
