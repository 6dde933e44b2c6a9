"""`latentlake gc STORE`: remove old attempts that no receipt names, and old temporary files."""

from __future__ import annotations

import time

from rich.markup import escape

from jobs.console import say
from pipeline.store import FeatureStore
from pipeline.store.garbage import Garbage, find_garbage, remove_garbage


def gc(store: FeatureStore, older_than_hours: float, *, dry_run: bool) -> list[Garbage]:
    """Say what goes and how much it weighs, and, but for a dry run, remove it."""
    found = find_garbage(store.layout, older_than_hours * 3600)
    verb = "would remove" if dry_run else "removed"
    gone = []
    for item in found if dry_run else remove_garbage(store.layout, found):
        gone.append(item)
        say(f"{verb} {escape(str(item.path))}: {item.bytes:,} bytes, {_age(item)}")
    total = sum(item.bytes for item in gone)
    say(
        f"[bold]gc[/] {verb} {len(gone)} of {len(found)} attempts and temporary files older than "
        f"{older_than_hours:g} hours, {total / 1e6:,.1f} MB"
    )
    return gone


def _age(item: Garbage) -> str:
    kind = "temporary" if item.attempt is None else "not committed"
    return f"{kind}, last written {(time.time() - item.newest) / 3600:,.1f} hours ago"


if __name__ == "__main__":
    import sys

    from jobs.cli import main

    main(["gc", *sys.argv[1:]])
