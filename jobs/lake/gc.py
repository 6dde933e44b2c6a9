"""`latentlake gc STORE`: remove old attempts without a receipt, idle compactions, and temporary files."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.markup import escape

from jobs.terminal.console import say
from pipeline.store import FeatureStore
from pipeline.store.upkeep.garbage import Garbage, find_garbage, remove_garbage
from schemas.errors import InputError


def gc(
    store: FeatureStore,
    older_than: Annotated[
        float,
        typer.Option(
            metavar="HOURS",
            help="Hours since the last file was written; choose more than a shard takes.",
            min=0,
        ),
    ] = 24,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Allow less than 1 hour; only if nothing is writing to the store.")
    ] = False,
) -> list[Garbage]:
    """Say what goes and how much it weighs, and, but for a dry run, remove it.

    Less than an hour would take what a run is writing, so it must be forced.
    """
    if older_than < 1 and not (force or dry_run):
        raise InputError(
            f"--older-than is {older_than:g} hours, which may remove what a run is writing: use at "
            "least 1 or, if nothing is writing to the store, add --force"
        )
    garbage = find_garbage(store.layout, older_than * 3600)
    verb = "would remove" if dry_run else "removed"
    removed = []
    for item in garbage if dry_run else remove_garbage(store.layout, garbage):
        removed.append(item)
        say(f"{verb} {escape(str(item.path))}: {item.bytes:,} bytes, {_age(item)}")
    total = sum(item.bytes for item in removed)
    say(
        f"[bold]gc[/] {verb} {len(removed)} of {len(garbage)} attempts, compactions and temporary files "
        f"older than {older_than:g} hours, and pieces of dropped sites, {total / 1e6:,.1f} MB"
    )
    return removed


def _age(item: Garbage) -> str:
    kind = "temporary" if item.attempt is None else "not committed"
    if item.superseded and item.marker is None:
        kind = "of a dropped site"
    elif item.marker is not None:
        kind = "superseded compaction" if item.superseded else "unpublished compaction"
    return f"{kind}, last written {(time.time() - item.newest) / 3600:,.1f} hours ago"
