"""Reading postings: a whole shard, or the rows of one feature through the row groups that may hold it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pipeline.statistics.features.ragged import run_starts
from pipeline.store.formats.parquet import open_parquet, postings_arrow_schema
from pipeline.store.objects.verbs import readable
from schemas.layout import StorePath
from schemas.values import F32, I64, U64, Postings

_SCHEMAS = [postings_arrow_schema("float16"), postings_arrow_schema("float32")]
_RUN_NNZ = 1 << 20
"""Activations that are read together."""


class PostingsFile:
    """One postings.parquet: its footer stays in memory, the file is opened for each question."""

    def __init__(self, path: StorePath) -> None:
        self._path = path
        with readable(path), open_parquet(path) as file:
            self._metadata = file.metadata
            if file.schema_arrow.remove_metadata() not in _SCHEMAS:
                raise ValueError(f"its columns are {', '.join(file.schema_arrow.names)[:80]}")
            groups = [self._metadata.row_group(i).column(0) for i in range(self._metadata.num_row_groups)]
            self.first: I64 = np.array([group.statistics.min for group in groups], dtype=np.int64)
            """First feature of each row group."""
            self.last: I64 = np.array([group.statistics.max for group in groups], dtype=np.int64)

    @property
    def nnz(self) -> int:
        """Activations in the file."""
        return int(self._metadata.num_rows)

    def groups_of(self, first: int, last: int) -> list[int]:
        """The row groups that may hold features first .. last - 1."""
        return np.flatnonzero((self.first < last) & (self.last >= first)).tolist()

    def runs_of(self, features: range) -> Iterator[list[int]]:
        """Row groups that may hold some features; small ones together, for each reading has its price."""
        run, nnz = list[int](), 0
        for group in self.groups_of(features.start, features.stop):
            more = self.nnz_of([group])
            if run and nnz + more > _RUN_NNZ:
                yield run
                run, nnz = [], 0
            run, nnz = [*run, group], nnz + more
        if run:
            yield run

    def nnz_of(self, groups: list[int]) -> int:
        """Activations in some row groups."""
        return sum(int(self._metadata.row_group(group).num_rows) for group in groups)

    def rows_of(self, feature: int) -> tuple[U64, F32]:
        """Rows (of the lake, ascending) and activations of one feature."""
        groups = self.groups_of(feature, feature + 1)
        if not groups:
            return np.empty(0, np.uint64), np.empty(0, np.float32)
        features, rows, values = self.read_groups(groups)
        # of the feature's own type, or NumPy would make another array of `features` to compare
        place = slice(*np.searchsorted(features, np.array([feature, feature + 1], dtype=np.uint32)))
        return rows[place], values[place].astype(np.float32)

    def read(self, row_start: int, groups: list[int] | None = None) -> Postings:
        """The whole shard, or some row groups of it, its rows counted from `row_start`."""
        chosen = list(range(self._metadata.num_row_groups)) if groups is None else groups
        features, rows, values = self.read_groups(chosen)
        starts = run_starts(features)
        offsets = np.append(starts, len(features))
        return Postings(
            features[starts], offsets, rows.astype(np.int64) - row_start, values.astype(np.float32)
        )

    def read_groups(
        self, groups: list[int], columns: tuple[str, ...] = ("feature", "row", "activation")
    ) -> list[Any]:
        """Columns of some row groups as they are stored: feature uint32, row uint64, activation."""
        with readable(self._path), open_parquet(self._path, self._metadata) as file:
            table = file.read_row_groups(groups, columns=list(columns), use_threads=False)
            # as `to_numpy`, which would import pandas: half a second in every process
            return [np.from_dlpack(table[name].combine_chunks()) for name in columns]
