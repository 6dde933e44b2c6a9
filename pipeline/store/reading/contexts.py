"""Which context, segment and document a row of the lake lies in, and the tokens around it.

Shapes: C contexts and S segments of the lake, Q rows that are requested.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.store.formats.parquet import read_frame
from pipeline.store.objects.verbs import readable
from pipeline.store.records.tokens import label_value
from schemas.layout import Layout
from schemas.records import Lake, ShardRecord
from schemas.tables.tables import Schema, tokens_schema
from schemas.values import I32, I64

COLUMNS: Schema = {
    "shard": pl.String(),
    "context": pl.UInt64(),
    "position": pl.UInt32(),
    "document": pl.UInt64(),
    "document_offset": pl.UInt32(),
}
"""What is known of each row besides its labels; `document_offset` is null for a BOS put before a document."""

_TOKENS_KEPT = 1 << 25


def label_column(name: str) -> str:
    """What a label's column is called where rows are described: one whose name is taken ends with _label."""
    return f"{name}_label" if name in {"row", "rows", "begin", "activation", *COLUMNS} else name


class ContextIndex:
    """Reads the token shards when first used: 8 bytes a context, and 28 bytes a segment plus its labels."""

    def __init__(self, layout: Layout, lake: Lake, shards: Sequence[ShardRecord]) -> None:
        self._layout, self._shards = layout, shards
        self._schema = tokens_schema(lake.label_columns, lake.inputs)
        self._shard_rows: I64 = np.array([record.row_start for record in shards], dtype=np.int64)
        self._tokens: OrderedDict[int, pl.Series] = OrderedDict()
        self._labels = {name: label_column(name) for name in lake.label_columns}
        self._dtypes = lake.label_columns

    def read(self) -> None:
        """Read all of it now, and the tokens of the first shards, as many as are kept."""
        _ = self.row_starts, self._segments
        rows = np.cumsum([record.rows for record in self._shards])
        for shard in range(int(np.searchsorted(rows, _TOKENS_KEPT))):
            self._tokens_of(shard)

    @property
    def columns(self) -> list[str]:
        """Names of all columns that `describe` gives; labels are named by `label_column`."""
        return [*COLUMNS, *self._labels.values()]

    @property
    def labels(self) -> list[str]:
        """Names of the labels' columns."""
        return [*self._labels.values()]

    @cached_property
    def row_starts(self) -> I64:
        """First row of each context, then the number of rows: int64 [C + 1]."""
        parts = [
            self._read(record, "row_offset")["row_offset"].to_numpy().astype(np.int64) + record.row_start
            for record in self._shards
        ]
        end = self._shards[-1].row_start + self._shards[-1].rows if self._shards else 0
        return np.concatenate([*parts, np.array([end], dtype=np.int64)])

    @cached_property
    def _segments(self) -> pl.DataFrame:
        """By `row` (i64, first row of each): `begin` (i64, its first token's), document, offset, labels: [S].

        BOS, which stands before a context's first segment, is its first row, not its first token.
        """
        return pl.concat([self._segments_of(record) for record in self._shards], rechunk=True)

    def _segments_of(self, record: ShardRecord) -> pl.DataFrame:
        # the first segment of a context takes in its BOS, and so begins at the context's first row
        context = pl.col("row_offset").cast(pl.Int64) + record.row_start
        segment = pl.col("segments").struct
        return (
            self._read(record, "row_offset", "segments")
            .explode("segments")
            .select(
                row=pl.when(pl.col("row_offset").ne_missing(pl.col("row_offset").shift(1)))
                .then(context)
                .otherwise(context + segment.field("start")),
                begin=context + segment.field("start"),
                document=segment.field("document"),
                offset=segment.field("offset"),
                **{
                    new: label_value(segment.field(old), self._dtypes[old])
                    for old, new in self._labels.items()
                },
            )
        )

    def documents(self) -> pl.DataFrame:
        """The documents with tokens: document u64, `row` u64, its first, `rows` i64, and the labels: [M]."""
        rows = pl.col("row").shift(-1).fill_null(int(self.row_starts[-1])) - pl.col("row")
        by_document = self._segments.with_columns(rows=rows).group_by("document", maintain_order=True)
        return by_document.agg(
            pl.col("row").first().cast(pl.UInt64), pl.col("rows").sum(), pl.col(self.labels).first()
        )

    def context_of(self, rows: NDArray[Any]) -> I64:
        """Number of the context of each row, int64 [Q]."""
        return np.searchsorted(self.row_starts, rows.astype(np.int64), side="right") - 1

    def position_of(self, rows: NDArray[Any]) -> I64:
        """Place of each row in its context, int64 [Q]."""
        return rows.astype(np.int64) - self.row_starts[self.context_of(rows)]

    def describe(self, rows: NDArray[Any], columns: Sequence[str]) -> pl.DataFrame:
        """The requested `columns` of each row: [Q]. Only what they need is read."""
        described: dict[str, pl.Series] = {}
        if "shard" in columns:
            names = pl.Series([record.name for record in self._shards], dtype=pl.String)
            described["shard"] = names[self._shard_of(rows)]
        if "context" in columns:
            described["context"] = pl.Series(self.context_of(rows).astype(np.uint64))
        if "position" in columns:
            described["position"] = pl.Series(self.position_of(rows).astype(np.uint32))
        of_segments = [name for name in ("document", *self._labels.values()) if name in columns]
        if of_segments or "document_offset" in columns:
            # segments ascend by their first row: a row lies in the last one that does not begin after it
            index = np.searchsorted(self._segments["row"].to_numpy(), rows.astype(np.int64), side="right") - 1
            described |= {name: self._segments[name][index] for name in of_segments}
        if "document_offset" in columns:
            begin, offset = (self._segments[name].to_numpy()[index] for name in ("begin", "offset"))
            token = rows.astype(np.int64) - begin
            place = pl.Series((np.maximum(token, 0) + offset).astype(np.uint32))
            # BOS is before the segment's first token, and no token of its document
            described["document_offset"] = place.set(pl.Series(token < 0), None)
        return pl.DataFrame({name: described[name] for name in columns})

    def token_ids(self, context: int) -> I32:
        """Token ids of one context."""
        shard = int(self._shard_of(self.row_starts[context : context + 1])[0])
        ids: I32 = self._tokens_of(shard)[context - self._shards[shard].context_start].to_numpy()
        return ids

    def tokens_in(self, first: I64, stop: I64) -> I32:
        """The token ids of rows first[0] .. stop[0] - 1, first[1] .. and so on, each within a context."""
        parts = [np.empty(0, np.int32)]
        contexts = self.context_of(first)
        begins = self.row_starts[contexts]
        for context, low, high in zip(
            contexts.tolist(), (first - begins).tolist(), (stop - begins).tolist(), strict=True
        ):
            parts.append(self.token_ids(context)[low:high])
        return np.concatenate(parts)

    def tokens_at(self, rows: NDArray[Any]) -> I32:
        """The token id of each row, [Q]; contexts need not be known."""
        ids, shards = np.empty(len(rows), np.int32), self._shard_of(rows)
        for shard in np.unique(shards).tolist():
            # the rows of a shard are the tokens of its contexts, one after another
            tokens = self._tokens_of(shard).explode().to_numpy()
            place = np.flatnonzero(shards == shard)
            ids[place] = tokens[rows[place].astype(np.int64) - self._shards[shard].row_start]
        return ids

    def _tokens_of(self, shard: int) -> pl.Series:
        """Token ids of each context of a shard, by its number."""
        # several threads may come here: none relies on what another may have let go
        tokens = self._tokens.pop(shard, None)
        if tokens is None:
            tokens = self._read(self._shards[shard], "token_ids")["token_ids"]
        self._tokens[shard] = tokens
        # the shards used last stay, up to some 128 MiB of them, for queries go on where they were
        kept = sum(self._shards[number].rows for number in list(self._tokens))
        while kept > _TOKENS_KEPT and len(self._tokens) > 1:
            kept -= self._shards[self._tokens.popitem(last=False)[0]].rows
        return tokens

    def _shard_of(self, rows: NDArray[Any]) -> I64:
        return np.searchsorted(self._shard_rows, rows.astype(np.int64), side="right") - 1

    def _read(self, record: ShardRecord, *columns: str) -> pl.DataFrame:
        path = self._layout.tokens(record.name)
        with readable(path):
            frame = read_frame(path, columns)
            for name in columns:
                if not _is_of(frame.schema[name], self._schema[name]):
                    raise ValueError(f"its column {name} is of {frame.schema[name]}")
            return frame


def _is_of(dtype: pl.DataType, expected: pl.DataType) -> bool:
    """Whether a column has this type; the fields of a list's structs may stand in any order."""
    if isinstance(dtype, pl.List) and isinstance(expected, pl.List) and isinstance(dtype.inner, pl.Struct):
        return isinstance(expected.inner, pl.Struct) and set(dtype.inner.fields) == set(expected.inner.fields)
    return dtype == expected
