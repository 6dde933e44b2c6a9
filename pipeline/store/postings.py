"""Reading postings: a whole shard, or the rows of one feature through the row groups that may hold it."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.store.objects import readable
from pipeline.store.parquet import open_parquet
from schemas.layout import StorePath
from schemas.values import F32, I64, U32, U64, Postings


class PostingsFile:
    """One postings.parquet: its footer stays in memory, the file is opened for each question."""

    def __init__(self, path: StorePath) -> None:
        self._path = path
        with readable(path), open_parquet(path) as file:
            self._metadata = file.metadata
        groups = [self._metadata.row_group(i).column(0) for i in range(self._metadata.num_row_groups)]
        self._first: I64 = np.array([group.statistics.min for group in groups], dtype=np.int64)
        self._last: I64 = np.array([group.statistics.max for group in groups], dtype=np.int64)

    def rows_of(self, feature: int) -> tuple[U64, F32]:
        """Rows (of the lake, ascending) and activations of one feature."""
        groups = np.flatnonzero((self._first <= feature) & (feature <= self._last)).tolist()
        if not groups:
            return np.empty(0, np.uint64), np.empty(0, np.float32)
        features, rows, values = self._columns(groups)
        place = slice(*np.searchsorted(features, np.array([feature, feature + 1], dtype=np.uint32)))
        return rows[place], values[place].astype(np.float32)

    def read(self, row_start: int) -> Postings:
        """The whole shard, its rows counted from `row_start`."""
        features, rows, values = self._columns(list(range(self._metadata.num_row_groups)))
        starts: I64 = np.flatnonzero(np.diff(features, prepend=features[:1] + np.uint32(1))).astype(np.int64)
        offsets = np.append(starts, len(features))
        return Postings(
            features[starts], offsets, rows.astype(np.int64) - row_start, values.astype(np.float32)
        )

    def _columns(self, groups: list[int]) -> tuple[U32, U64, Any]:
        with (
            readable(self._path),
            open_parquet(self._path, self._metadata) as file,
        ):
            table = file.read_row_groups(groups, use_threads=False)
        feature, row, activation = (table[name].to_numpy() for name in ("feature", "row", "activation"))
        return feature, row, activation
