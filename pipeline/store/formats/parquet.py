"""Parquet files of the store: postings in row groups of whole feature blocks, and frames written whole."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.statistics.features.ragged import run_starts
from pipeline.store.objects.paths import is_memory
from pipeline.store.objects.verbs import staged
from schemas.layout import StorePath
from schemas.names import ActivationDtype
from schemas.records import FORMAT_VERSION
from schemas.tables.tables import Schema
from schemas.values import U32, Postings

# 1 M nonzeros of 4,608 features (32 a row, Zipf): 3.18 B a nonzero at every level; level 1 is the quickest.
_POSTINGS_LEVEL = 1
MAX_GROUP = 1 << 26  # pyarrow's own limit
# Partials of a shard of the demo: 1.04 B a nonzero in 10 ms at level 1, 1.03 B in 19 ms at level 9.
_FRAME_LEVEL = 1
_FRAME_GROUP_BYTES = 1 << 18
"""Of a row group in memory: smaller ones weigh more by their metadata than they save."""
_ROWS, _ROWS_WITH_LISTS = 1 << 16, 1 << 11
"""Of a row group, which is read whole for one of its rows: some hundred thousand bytes to a few million."""
_FOOTER_GUESS = 1 << 16
"""Bytes of a file's end that are read first; footers are rarely larger."""
SEAL_KEY = "latentlake.footer"
"""Of the key-value metadata, where a footer's sha256 stands."""
_SEAL_KEY, _SEAL_KIND, _NO_SEAL = SEAL_KEY.encode(), b"sha256:", b"0" * 64
_INTEGER, _NUMBER = "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"
_ENCODINGS = {
    "INT32": _INTEGER,
    "INT64": _INTEGER,
    "FLOAT": _NUMBER,
    "DOUBLE": _NUMBER,
    "FIXED_LEN_BYTE_ARRAY": "PLAIN",
}
PLAIN_FLOAT16_SINCE = 7
"""Format version: DuckDB and fastparquet know BYTE_STREAM_SPLIT of float32 and float64 alone. A nonzero of
postings with float16 takes as much room either way."""


def postings_arrow_schema(activation_dtype: ActivationDtype) -> pa.Schema:
    """Columns of postings.parquet."""
    value = pa.float16() if activation_dtype == "float16" else pa.float32()
    return pa.schema([("feature", pa.uint32()), ("row", pa.uint64()), ("activation", value)])


def postings_writer(
    path: Path, activation_dtype: ActivationDtype, format_version: int = FORMAT_VERSION, **options: Any
) -> AbstractContextManager[pq.ParquetWriter]:
    """A writer of postings; write each row group as a table, with `row_group_size=MAX_GROUP`."""
    plain = activation_dtype == "float16" and format_version >= PLAIN_FLOAT16_SINCE
    return _sealed_writer(
        path,
        postings_arrow_schema(activation_dtype),
        compression="zstd",
        compression_level=_POSTINGS_LEVEL,
        use_dictionary=False,
        column_encoding={
            "feature": _INTEGER,
            "row": _INTEGER,
            "activation": "PLAIN" if plain else _NUMBER,
        },
        write_statistics=["feature", "row"],
        **options,
    )


def write_postings(
    path: Path,
    postings: Postings,
    *,
    row_start: int,
    activation_dtype: ActivationDtype,
    feature_block: int,
    format_version: int = FORMAT_VERSION,
) -> None:
    """Write one row group per block of `feature_block` features; `row_start` is added to the rows.

    A block in which nothing fired has no row group. `format_version` is the plan's.
    """
    schema = postings_arrow_schema(activation_dtype)
    with postings_writer(path, activation_dtype, format_version) as writer:
        for first, last in _whole_blocks(postings.features, feature_block):
            writer.write_table(_table(postings, first, last, row_start, schema), row_group_size=MAX_GROUP)


def read_frame(path: StorePath, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """A Parquet file, or some of its columns; wrap it in `objects.readable` for what damaged ones raise."""
    with open_parquet(path) as file:
        frame = _frame(file.read(columns=None if columns is None else list(columns)))
    return frame if columns is None else frame.select(columns)


def as_frame(table: pa.Table, schema: Schema) -> pl.DataFrame:
    """What PyArrow has read; ValueError where the columns are others, as a damaged footer may have it."""
    frame = _frame(table)
    if frame.schema != schema:
        raise ValueError(f"its columns are {', '.join(frame.columns)}")
    return frame


def _frame(table: pa.Table) -> pl.DataFrame:
    """Without the schema's metadata, at whose damage Polars panics."""
    return pl.DataFrame(table.replace_schema_metadata(None))


def scan_frame(path: StorePath) -> pl.LazyFrame:
    """A Parquet file, read as far as a query needs it."""
    return scan_frames(scannable(path))


def scan_frames(source: Any, **options: Any) -> pl.LazyFrame:
    """What is `scannable`, one or several; with the environment's credentials, as obstore finds them.

    Polars would else ask the clouds' own packages, where they are installed, which search elsewhere.
    """
    return pl.scan_parquet(source, glob=False, credential_provider=None, **options)


def scannable(path: StorePath) -> str | io.BytesIO:
    """What Polars scans: a path or URL it knows itself; bytes of what lies in this process's memory."""
    return io.BytesIO(path.read_bytes()) if is_memory(path) else str(path)


def read_schema(path: StorePath) -> Schema:
    """The columns of a Parquet file."""
    with open_parquet(path) as file:
        return _frame(file.schema_arrow.empty_table()).schema


def read_through(path: StorePath) -> None:
    """Read every page, a column of a row group in memory, for its checksum; errors as those of PyArrow."""
    with open_parquet(path) as file:
        leaves = dict.fromkeys(file.schema.column(n).path.partition(".")[0] for n in range(len(file.schema)))
        for group in range(file.num_row_groups):
            for name in leaves:
                file.read_row_group(group, columns=[name], use_threads=False)


def read_metadata(path: StorePath) -> dict[str, str]:
    """The key-value metadata of a Parquet file."""
    with open_parquet(path) as file:
        return {key.decode(): value.decode() for key, value in (file.metadata.metadata or {}).items()}


@contextmanager
def open_parquet(path: StorePath, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """The file, to read row groups; PyArrow opens local ones itself, which is quicker.

    The footer is compared with its seal, and pages with their checksums: a flipped bit would else be a wrong
    number. Files of older stores have no seal, those from before version 4 no checksums.
    """
    checked: dict[str, Any] = {"page_checksum_verification": True}
    if isinstance(path, Path):
        if metadata is None:
            with path.open("rb") as source:
                metadata = _checked_footer(source)
        with pq.ParquetFile(path, metadata=metadata, **checked) as file:
            yield file
    else:
        with path.open("rb") as source:
            metadata = _checked_footer(source) if metadata is None else metadata
            with pq.ParquetFile(source, metadata=metadata, pre_buffer=True, **checked) as file:
                yield file


def _checked_footer(file: BinaryIO) -> pq.FileMetaData:
    """What stands at the end of a file; ValueError where its seal, if it has one, is another."""
    footer, end = _footer(file)
    place = _place_of_seal(footer)
    if place is not None:
        seal = footer[place : place + len(_NO_SEAL)]
        if _seal_of(footer[:place] + _NO_SEAL + footer[place + len(seal) :]) != seal:
            raise ValueError("its footer is not the one that was written")
    return pq.read_metadata(pa.BufferReader(footer + end))


def _footer(file: BinaryIO) -> tuple[bytes, bytes]:
    """A file's footer, and the 8 bytes after it: its length, and Parquet's name."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _FOOTER_GUESS))
    tail = file.read()
    # a Parquet file ends in its footer, the footer's length in 4 bytes, and the format's name
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != b"PAR1" or length > size:
        raise ValueError("it is not a Parquet file")
    if _SEAL_KEY in tail[:-length]:  # a seal before what is said to be the footer: the length is damaged
        raise ValueError("its footer's length is not the one that was written")
    if length > len(tail):
        file.seek(size - length)
        tail = file.read()
    return tail[-length:-8], tail[-8:]


def _place_of_seal(footer: bytes) -> int | None:
    """Where the seal's digits are in a footer; None where it has none."""
    key = footer.find(_SEAL_KEY)
    place = footer.find(_SEAL_KIND, key)
    return None if min(key, place) < 0 else place + len(_SEAL_KIND)


def _seal_of(footer: bytes) -> bytes:
    return hashlib.sha256(footer).hexdigest().encode()


@contextmanager
def _sealed_writer(path: Path, schema: pa.Schema, **options: Any) -> Iterator[pq.ParquetWriter]:
    """A writer of a file whose pages have checksums, and whose footer holds the sha256 of itself.

    That is among the key-value metadata, which any reader skips, and was hashed with zeros in its place.
    """
    with pq.ParquetWriter(path, schema, write_page_checksum=True, **options) as writer:
        yield writer
        writer.add_key_value_metadata({_SEAL_KEY: _SEAL_KIND + _NO_SEAL})
    with path.open("r+b") as file:
        footer, end = _footer(file)
        place = _place_of_seal(footer)
        # ParquetWriter has written zeros there, so that the seal changes no length
        assert place is not None
        file.seek(place - len(footer) - len(end), io.SEEK_END)
        file.write(_seal_of(footer))


def write_frame(
    path: StorePath,
    frame: pl.DataFrame,
    metadata: dict[str, str] | None = None,
    *,
    feature_block: int | None = None,
) -> None:
    """Write or replace `path` whole; equal frames give equal bytes.

    With `feature_block` a row group holds whole blocks of that many features of the ascending column
    `feature`: one block, or several where they are small.
    """
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    groups = _groups(frame, table, feature_block)
    _write(path, table.slice(0, 0), (table.slice(first, last - first) for first, last in groups), metadata)


def write_frames(
    path: StorePath, schema: Schema, frames: Iterable[pl.DataFrame], metadata: dict[str, str] | None = None
) -> None:
    """Write or replace `path` whole from parts that come one after another, one in memory at a time.

    Row groups hold up to _ROWS rows of one part, or fewer with lists, so that a filter on an ascending column
    reads little.
    """
    rows = _ROWS_WITH_LISTS if any(dtype.is_nested() for dtype in schema.values()) else _ROWS
    slices = (part for frame in frames for part in frame.iter_slices(rows))
    parts = (part.to_arrow(compat_level=pl.CompatLevel.oldest()) for part in slices)
    empty = pl.DataFrame(schema=schema).to_arrow(compat_level=pl.CompatLevel.oldest())
    _write(path, empty, parts, metadata)


def _write(
    path: StorePath, empty: pa.Table, parts: Iterable[pa.Table], metadata: dict[str, str] | None
) -> None:
    """Each part becomes a row group."""
    sink = pa.BufferOutputStream()
    pq.write_table(empty, sink)  # an empty file knows the leaves' paths and physical types
    schema = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    leaves = [schema.column(number) for number in range(len(schema))]
    # a leaf of no known encoding, a string or boolean, gets a dictionary
    encodings = {leaf.path: _ENCODINGS.get(leaf.physical_type) for leaf in leaves}
    with (
        staged(path) as temporary,
        _sealed_writer(
            temporary,
            empty.schema,
            compression="zstd",
            compression_level=_FRAME_LEVEL,
            use_dictionary=[name for name in encodings if encodings[name] is None],
            column_encoding={name: encoding for name, encoding in encodings.items() if encoding},
            store_schema=False,
        ) as writer,
    ):
        for part in parts:
            writer.write_table(part)
        writer.add_key_value_metadata(metadata or {})


def _groups(frame: pl.DataFrame, table: pa.Table, feature_block: int | None) -> list[tuple[int, int]]:
    """Where row groups begin and end."""
    if feature_block is None or not table.num_rows:
        return [(0, table.num_rows)]
    groups: list[tuple[int, int]] = []
    for first, last in _whole_blocks(frame["feature"].to_numpy(), feature_block):
        if groups and table.slice(groups[-1][0], first - groups[-1][0]).nbytes < _FRAME_GROUP_BYTES:
            groups[-1] = (groups[-1][0], last)
        else:
            groups.append((first, last))
    return groups


def _whole_blocks(features: U32, feature_block: int) -> list[tuple[int, int]]:
    """Begin and end of each block's run in ascending features."""
    blocks = features // np.uint32(feature_block)
    return list(pairwise([*run_starts(blocks).tolist(), len(blocks)]))


def _table(postings: Postings, first: int, last: int, row_start: int, schema: pa.Schema) -> pa.Table:
    """The postings of features[first:last] as an Arrow table."""
    part = postings.part(first, last)
    columns = [
        np.repeat(part.features, np.diff(part.offsets)),
        part.rows.astype(np.uint64) + np.uint64(row_start),
        part.values.astype(schema.field("activation").type.to_pandas_dtype()),
    ]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema)
