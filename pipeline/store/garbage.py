"""What nobody will ever read: attempts that no receipt names, and temporary files of writers that are gone.

A running attempt has no receipt either, and is told from garbage by its age alone: its newest file is younger
than the limit, which must be longer than any shard takes. Before it is removed the receipt is looked for once
more. What has any other name than latentlake gives is left alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.store.catalog import read_plans
from pipeline.store.commits import read_commit, read_commits
from pipeline.store.objects import remove, remove_tree, walk
from schemas.errors import InputError
from schemas.layout import Layout, StorePath
from schemas.run_file import NAME

_ATTEMPT = re.compile(r"[0-9a-f]{32}")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


@dataclass
class Garbage:
    """One folder or file that can go; `newest` in Unix seconds."""

    path: StorePath
    attempt: tuple[str, str, str] | None
    """Pass, shard and attempt; None for what is temporary."""
    bytes: int = 0
    newest: float = 0.0


def find_garbage(layout: Layout, older_than_s: float) -> list[Garbage]:
    """Garbage whose newest file is older than that; the store is listed once, and its receipts are read."""
    passes, found = set(read_plans(layout)), dict[str, Garbage]()
    committed = {
        (name, shard, receipt.attempt)
        for name in passes
        for shard, receipt in read_commits(layout, name).items()
    }
    for name, size, modified in walk(layout.root):
        if (place := _place(name, passes)) is None or place[1] in committed:
            continue
        item = found.setdefault(place[0], Garbage(layout.root / place[0], place[1]))
        item.bytes += size
        item.newest = max(item.newest, modified)
    limit = time.time() - older_than_s
    return [found[key] for key in sorted(found) if found[key].newest < limit]


def remove_garbage(layout: Layout, garbage: list[Garbage]) -> Iterator[Garbage]:
    """Remove it, and yield each piece that went; an attempt that was committed or touched meanwhile stays."""
    for item in garbage:
        if item.attempt is not None and not _is_still(layout, item):
            continue
        if item.path.is_file():
            remove(item.path)
        else:
            remove_tree(item.path)
        if item.path.exists():
            raise InputError(f"{item.path} can not be removed: allow writing there, and run again")
        yield item


def _place(name: str, passes: set[str]) -> tuple[str, tuple[str, str, str] | None] | None:
    """The attempt or temporary thing that a file belongs to, by its path from the root; None: neither."""
    parts = name.split("/")
    if len(parts) > 5 and parts[0] == "passes" and parts[1] in passes and parts[2] == "data":
        known = NAME.fullmatch(parts[3]) and _ATTEMPT.fullmatch(parts[4])
        return ("/".join(parts[:5]), (parts[1], parts[3], parts[4])) if known else None
    for number, part in enumerate(parts):
        if _TEMPORARY.fullmatch(part):
            return "/".join(parts[: number + 1]), None
    return None


def _is_still(layout: Layout, item: Garbage) -> bool:
    """Whether an attempt is garbage at this moment: not committed, and nothing was written to it."""
    assert item.attempt is not None
    pass_name, shard, attempt = item.attempt
    receipt = read_commit(layout, pass_name, shard)
    if receipt is not None and receipt.attempt == attempt:
        return False
    return all(modified <= item.newest for _, _, modified in walk(item.path))
