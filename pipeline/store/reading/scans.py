"""Lazy frames over token shards and postings; what they read is left to Polars' pushdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
from numpy.typing import NDArray

from pipeline.store.formats.parquet import scan_frame, scan_frames, scannable
from pipeline.store.objects.paths import is_memory
from pipeline.store.reading.contexts import ContextIndex
from pipeline.store.records.tokens import label_value
from schemas.layout import Layout, StorePath
from schemas.names import ActivationDtype
from schemas.records import Lake, ShardRecord
from schemas.tables.tables import postings_schema, tokens_schema


def scan_tokens(layout: Layout, lake: Lake, shards: Sequence[ShardRecord]) -> pl.LazyFrame:
    """One row per context of `shards`, which are all shards of the lake, in their order.

    Columns: shard, context u64 and row_start u64 (lake-wide), then those of a token shard but row_offset;
    labels are those of `label_value`.
    """
    columns = _columns(lake)
    if not shards:
        return pl.LazyFrame(schema={"shard": pl.String(), "context": pl.UInt64(), "row_start": pl.UInt64()})
    if is_memory(layout.root):
        # files in memory have no paths that Polars could open together
        parts = [
            scan_frame(layout.tokens(record.name)).select(
                shard=pl.lit(record.name),
                context=pl.int_range(pl.len(), dtype=pl.UInt64) + record.context_start,
                row_start=pl.col("row_offset") + record.row_start,
                **columns,
            )
            for record in shards
        ]
        return pl.concat(parts)
    # one scan of all files, which counts contexts on over them; which shard a line is of is in its path
    paths = [str(layout.tokens(record.name)) for record in shards]
    lake_wide = scan_frames(paths, row_index_name="context", include_file_paths="__path__")
    starts = pl.col("__path__").replace_strict(
        paths, [record.row_start for record in shards], return_dtype=pl.UInt64
    )
    names = pl.col("__path__").replace_strict(
        paths, [record.name for record in shards], return_dtype=pl.String
    )
    return lake_wide.select(
        shard=names,
        context=pl.col("context").cast(pl.UInt64),
        row_start=pl.col("row_offset") + starts,
        **columns,
    )


def _columns(lake: Lake) -> dict[str, pl.Expr]:
    """The columns of a token shard but row_offset, labels as readers see them."""
    columns = {name: pl.col(name) for name in tokens_schema(lake.label_columns, lake.inputs)}
    del columns["row_offset"]
    numbers = [name for name, dtype in lake.label_columns.items() if dtype == "Float64"]
    if not numbers:
        return columns
    inside = [label_value(pl.field(name), "Float64").alias(name) for name in numbers]
    segments = pl.col("segments").list.eval(pl.element().struct.with_fields(*inside))
    return columns | {name: label_value(pl.col(name), "Float64") for name in numbers} | {"segments": segments}


def scan_activations(
    paths: Sequence[StorePath], activation_dtype: ActivationDtype, contexts: ContextIndex
) -> pl.LazyFrame:
    """Postings of several shards with each row's context and position, looked up only when needed."""
    schema = postings_schema(activation_dtype)
    sources: Any = [scannable(path) for path in paths]
    postings = scan_frames(sources, schema=schema) if paths else pl.LazyFrame(schema=schema)
    return postings.select(
        "feature",
        "row",
        context=_of_rows(contexts.context_of, pl.UInt64()),
        position=_of_rows(contexts.position_of, pl.UInt32()),
        activation="activation",
    )


def _of_rows(function: Callable[[NDArray[Any]], NDArray[Any]], dtype: pl.DataType) -> pl.Expr:
    """Elementwise, so that filters on other columns still reach the files."""

    def of(rows: pl.Series) -> pl.Series:
        return pl.Series(rows.name, function(rows.to_numpy())).cast(dtype)

    return pl.col("row").map_batches(of, return_dtype=dtype, is_elementwise=True)
