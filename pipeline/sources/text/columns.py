"""What the readers of files share: Arrow's types as those of labels, frames of the first rows, failures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from schemas.errors import InputError
from schemas.storage_failures import storage_failure

Record = tuple[int, Any, tuple[Any, ...]]
"""Row (from 0) or line (from 1), text, labels."""


def is_string(dtype: pa.DataType) -> bool:
    """Whether a column of this type holds text, plain or as a dictionary."""
    kind = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def label_dtypes(path: Path, schema: pa.Schema, columns: Iterable[str]) -> dict[str, str]:
    """The declared types of label columns; one of type null says nothing."""
    tests: list[tuple[Callable[[Any], bool], str]] = [
        (is_string, "String"),
        (pa.types.is_integer, "Int64"),
        (pa.types.is_floating, "Float64"),
        (pa.types.is_boolean, "Boolean"),
    ]
    dtypes: dict[str, str] = {}
    for column in columns:
        kind = schema.field(column).type
        if dtype := next((dtype for is_kind, dtype in tests if is_kind(kind)), None):
            dtypes[column] = dtype
        elif not pa.types.is_null(kind):
            raise InputError(
                f"{path}: label column {column!r} holds {kind}; labels are strings, "
                "numbers or true/false: write it as text"
            )
    return dtypes


def frame_of(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pl.DataFrame:
    """The rows of some batches; a dictionary of texts is text."""
    frame = pl.from_arrow(pa.Table.from_batches(batches, schema))
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(pl.col(pl.Categorical).cast(pl.String))


def frame_of_rows(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows as a frame; a column whose values are of several types is of type Object."""

    def series(name: str) -> pl.Series:
        values = [row.get(name) for row in rows]
        try:
            return pl.Series(name, values)
        except (TypeError, OverflowError, pl.exceptions.PolarsError):
            return pl.Series(name, values, dtype=pl.Object)

    return pl.DataFrame([series(name) for name in dict.fromkeys(name for row in rows for name in row)])


def failure(path: Path, error: Exception, how: str = "") -> InputError:
    """What the system refuses is not damage."""
    return storage_failure(error, path, "read") or InputError(
        f"{path} cannot be read{how}: {one_line(error)}"
    )


def one_line(error: BaseException) -> str:
    """What an error says, without its line ends."""
    return " ".join(str(error).split())
