"""Compactions as readers see them: the one that covers most, and what it does not cover."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np

from pipeline.store.formats.postings import PostingsFile
from pipeline.store.objects.verbs import listed, read_bytes
from pipeline.store.records.commits import receipts_digest
from schemas.errors import InputError
from schemas.layout import Layout, StorePath, below
from schemas.names import NAME
from schemas.records import Compaction, Receipt
from schemas.values import F32, U64


class Compacted:
    """One published compaction of a site."""

    def __init__(self, folder: StorePath, marker: StorePath, compaction: Compaction) -> None:
        self.marker, self.record = marker, compaction
        self.paths = [below(folder, file.path, "compacted file") for file in compaction.files]
        self.shards = frozenset(compaction.shards)
        self._first = [file.first_feature for file in compaction.files]
        self._open = cache(PostingsFile)

    def rows_of(self, feature: int) -> tuple[U64, F32]:
        """Rows (of the lake, ascending) and activations of one feature over its shards."""
        # files ascend by their first feature: the last one that does not begin after this feature
        number = bisect_right(self._first, feature) - 1
        if number < 0:
            return np.empty(0, np.uint64), np.empty(0, np.float32)
        path = self.paths[number]
        try:
            return self._open(path).rows_of(feature)
        except InputError as error:
            raise InputError(f"{error}, or {remedy(self.marker)}") from None

    def require_files(self) -> None:
        """InputError, with the remedy, where a file is missing; one listing."""
        folders = {path.parent for path in self.paths}
        there = {file.name for folder in folders for file in listed(folder)}
        if missing := [path for path in self.paths if path.name not in there]:
            raise InputError(f"{missing[0]} is missing: {remedy(self.marker)}")


def remedy(marker: StorePath) -> str:
    """What helps where a compaction cannot be read: without it the store is whole."""
    return f"delete {marker} and run `latentlake compact`"


def in_use(compactions: Iterable[Compacted]) -> Compacted | None:
    """The one of a site's compactions that queries read: that of most shards."""
    return max(compactions, key=lambda compacted: len(compacted.shards), default=None)


def read_compactions(
    layout: Layout, pass_name: str, receipts: Mapping[str, Receipt]
) -> tuple[list[Compacted], list[str]]:
    """The compactions of a pass whose shards are all committed as they were, by name; then what is wrong.

    A marker that cannot be read (damaged, or of a newer format) is reported in a sentence; its compaction
    counts as none.
    """
    compactions, wrong, folder = list[Compacted](), list[str](), layout.compactions(pass_name)
    for path in sorted(listed(folder), key=lambda path: path.name):
        if path.suffix != ".json" or not NAME.fullmatch(path.stem):
            continue
        try:
            record = Compaction.from_json(read_bytes(path), str(path))
            compacted = Compacted(layout.compaction(pass_name, path.stem), path, record)
        except FileNotFoundError:  # removed at this moment
            continue
        except (InputError, OSError) as error:
            wrong.append(f"compaction {path} cannot be read ({error}): {remedy(path)}")
            continue
        if _fits(record, receipts):
            compactions.append(compacted)
    return compactions, wrong


def _fits(record: Compaction, receipts: Mapping[str, Receipt]) -> bool:
    covered = [receipts[shard] for shard in record.shards if shard in receipts]
    return len(covered) == len(record.shards) and receipts_digest(covered) == record.receipts
