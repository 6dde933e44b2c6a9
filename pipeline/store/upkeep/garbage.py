"""What will never be read: attempts without a receipt, compactions that none reads, dead writers' files.

A running attempt has no receipt either, and is distinguished from garbage by its age alone: its newest file
is younger than the limit, which must be longer than any shard takes. So it is with a compaction that has no
marker yet. Before either is removed the receipt or marker is searched for once more. A published compaction
goes when a whole one covers all its shards and more. What has any other name than latentlake gives is left
alone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.store.objects.verbs import remove, walk
from pipeline.store.records.catalog import read_plans
from pipeline.store.records.commits import read_commit, read_commits
from pipeline.store.records.compacted import read_compactions
from pipeline.store.upkeep.drop import leftovers, remove_whole
from schemas.layout import Layout, StorePath
from schemas.names import NAME
from schemas.records import Receipt

_ATTEMPT = re.compile(r"[0-9a-f]{32}")
_COMPACTION = re.compile(r"(passes/([^/]+)/compactions/[0-9a-f]{32})(\.json|/.+)")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_PROBE, _PROBE_S = re.compile(r"\.probe\.[0-9a-f]{32}\.tmp"), 30 * 24 * 3600
"""A pass writes it when it begins, and needs it to its end."""


@dataclass
class Garbage:
    """One folder or file that can go; `newest` in Unix seconds."""

    path: StorePath
    attempt: tuple[str, str, str] | None
    """Pass, shard and attempt; None for what is none."""
    marker: StorePath | None = None
    """Of a compaction: what publishes it, or would."""
    superseded: bool = False
    """Whether it is a published compaction that none reads."""
    bytes: int = 0
    newest: float = 0.0


def find_garbage(layout: Layout, older_than_s: float) -> list[Garbage]:
    """Garbage whose newest file is older than that; the store is listed, and its receipts are read."""
    now, by_path = time.time(), dict[str, Garbage]()
    receipts = {name: read_commits(layout, name) for name in read_plans(layout)}
    committed = {
        (name, shard, receipt.attempt)
        for name, of_pass in receipts.items()
        for shard, receipt in of_pass.items()
    }
    published: dict[str, bool] = {}
    for name, of_pass in receipts.items():
        published |= _published(layout, name, of_pass, now - older_than_s)
    passes = set(receipts)
    for name, size, modified in walk(layout.root):
        if (match := _COMPACTION.fullmatch(name)) and match[2] in passes and published.get(match[1], True):
            # a compaction without a marker, or one that is superseded
            folder = layout.root / match[1]
            marker = folder.parent / f"{folder.name}.json"
            item = Garbage(folder, None, marker, superseded=match[1] in published)
        elif (place := _place(name, passes)) is not None:
            item = Garbage(layout.root / place[0], place[1])
        else:
            continue
        if item.attempt in committed:
            continue
        item = by_path.setdefault(str(item.path), item)
        item.bytes += size
        item.newest = max(item.newest, modified)
    old = []
    for _, item in sorted(by_path.items()):
        is_probe = _PROBE.fullmatch(item.path.name) is not None
        if item.newest < now - (max(older_than_s, _PROBE_S) if is_probe else older_than_s):
            old.append(item)
    # what is left of a dropped site goes at any age: nobody reads it, and nobody writes it any more
    return old + [
        Garbage(piece.path, None, piece.marker, superseded=True, bytes=piece.bytes, newest=piece.newest)
        for _, piece in leftovers(layout)
    ]


def remove_garbage(layout: Layout, garbage: list[Garbage]) -> Iterator[Garbage]:
    """Remove it, and yield each piece that went; what was committed or touched meanwhile stays."""
    for item in garbage:
        if not _is_still_garbage(layout, item):
            continue
        if item.marker is not None:
            remove(item.marker)
        remove_whole(item.path)
        yield item


def _published(
    layout: Layout, pass_name: str, receipts: Mapping[str, Receipt], before: float
) -> dict[str, bool]:
    """The compactions that have a marker, by path from the root, and whether each is superseded.

    That is so when one that is whole, and was published `before`, covers all its shards and more.
    """
    files = {name: modified for name, _, modified in walk(layout.compactions(pass_name))}
    compactions, _ = read_compactions(layout, pass_name, receipts)
    whole = [
        one
        for one in compactions
        if files.get(one.marker.name, before) < before
        and all(f"{one.marker.stem}/{file.path}" in files for file in one.record.files)
    ]
    superseded = {
        one.marker.stem
        for one in compactions
        for other in whole
        if one.record.site == other.record.site and one.shards < other.shards
    }
    stems = [name.removesuffix(".json") for name in files if "/" not in name and name.endswith(".json")]
    return {f"passes/{pass_name}/compactions/{stem}": stem in superseded for stem in stems}


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


def _is_still_garbage(layout: Layout, item: Garbage) -> bool:
    """Whether it is garbage at this moment: not committed or published, and nothing was written to it."""
    if item.attempt is not None:
        pass_name, shard, attempt = item.attempt
        receipt = read_commit(layout, pass_name, shard)
        if receipt is not None and receipt.attempt == attempt:
            return False
    elif item.marker is None:
        return True
    elif item.marker.exists() and not item.superseded:
        return False
    return all(modified <= item.newest for _, _, modified in walk(item.path))
