"""Compactions as readers see them: the one that covers most, and what it does not cover."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping

import numpy as np

from pipeline.store.commits import receipts_digest
from pipeline.store.postings import PostingsFile
from schemas.layout import Layout, StorePath
from schemas.records import Compaction, Receipt
from schemas.run_file import check_name
from schemas.values import F32, U64


class Compacted:
    """One published compaction of a site."""

    def __init__(self, folder: StorePath, marker: StorePath, compaction: Compaction) -> None:
        self.marker, self.record = marker, compaction
        self.paths = [_below(folder, file.path) for file in compaction.files]
        self.shards = frozenset(compaction.shards)
        self._first = [file.first_feature for file in compaction.files]
        self._files: dict[StorePath, PostingsFile] = {}

    def rows_of(self, feature: int) -> tuple[U64, F32]:
        """Rows (of the lake, ascending) and activations of one feature over its shards."""
        number = bisect_right(self._first, feature) - 1
        if number < 0:
            return np.empty(0, np.uint64), np.empty(0, np.float32)
        path = self.paths[number]
        if path not in self._files:
            self._files[path] = PostingsFile(path)
        return self._files[path].rows_of(feature)


def _below(folder: StorePath, path: str) -> StorePath:
    """The path that a record names below a folder; it may not lead out of it."""
    for part in path.split("/"):
        folder = folder / check_name(part, "compacted file")
    return folder


def read_compactions(
    layout: Layout, pass_name: str, site: str, receipts: Mapping[str, Receipt]
) -> Iterator[Compacted]:
    """The compactions of a site whose shards are all committed as they were, in the order of their names."""
    folder = layout.compactions(pass_name)
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.suffix != ".json" or path.name.startswith("."):
            continue
        record: Compaction = Compaction.from_json(path.read_bytes(), str(path))
        if record.site == site and _fits(record, receipts):
            yield Compacted(layout.compaction(pass_name, path.stem), path, record)


def _fits(record: Compaction, receipts: Mapping[str, Receipt]) -> bool:
    covered = [receipts[shard] for shard in record.shards if shard in receipts]
    return len(covered) == len(record.shards) and receipts_digest(covered) == record.receipts
