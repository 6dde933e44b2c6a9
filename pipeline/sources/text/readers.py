"""Readers of one file each: Parquet, JSON lines (plain or gzipped), CSV, text.

A reader streams raw records `(number, text, labels)` and checks form only; its caller checks the values.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.text.columns import (
    Record,
    failure,
    frame_of,
    frame_of_rows,
    is_string,
    label_dtypes,
    one_line,
)
from pipeline.sources.text.csv_reader import CsvReader
from pipeline.sources.values import (
    MOST_LINE,
    MOST_TEXT,
    check_columns,
    infer_dtypes,
    require_text_size,
)
from schemas.errors import InputError

_BATCH_ROWS = 256
MOST_GROUP = 1 << 30
"""Bytes of a row group, before compression, of which that many rows are read at once; else one by one."""

_GZIP_RATIO = 3
"""Text is about so much longer than its gzip file."""


class Reader(Protocol):
    """One file."""

    def label_dtypes(self) -> dict[str, str]:
        """Types of the label columns, as far as the file declares them; InputError for a missing column."""
        ...

    def text_bytes(self) -> int:
        """About how many bytes of text it holds."""
        ...

    def first_rows(self, n: int) -> pl.DataFrame:
        """The first `n` documents with every column of the file, whatever its type; none of a text file."""
        ...

    def records(self) -> Iterator[Record]:
        """The documents, raw."""
        ...

    def where(self, number: int) -> str:
        """How to call a record in a message."""
        ...


@dataclass(frozen=True)
class ParquetReader:
    """A Parquet file; only the columns that are needed are read, some rows at a time."""

    path: Path
    text_column: str
    label_columns: tuple[str, ...]

    def label_dtypes(self) -> dict[str, str]:
        """The declared types; a column of type null says nothing."""
        with self._open() as file:
            schema = file.schema_arrow
        check_columns((self.text_column, *self.label_columns), schema.names, str(self.path))
        for name in (self.text_column, *self.label_columns):
            if schema.names.count(name) > 1:
                raise InputError(f"{self.path} has several columns {name!r}: rename all but one")
        text = schema.field(self.text_column).type
        if not (is_string(text) or pa.types.is_null(text)):
            raise InputError(f"{self.path}: column {self.text_column!r} holds {text}, not text")
        return label_dtypes(self.path, schema, self.label_columns)

    def text_bytes(self) -> int:
        """Size of the text column before compression, from the file's footer."""
        with self._open() as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
        return sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == self.text_column)

    def first_rows(self, n: int) -> pl.DataFrame:
        """The first rows of the file."""
        with self._open() as file:
            return frame_of(islice(file.iter_batches(n), 1), file.schema_arrow)

    def records(self) -> Iterator[Record]:
        """Rows, numbered from 0."""
        number = 0
        with self._open() as file:
            columns = list({self.text_column: None} | dict.fromkeys(self.label_columns))
            check_columns(columns, file.schema_arrow.names, str(self.path))
            for group in range(file.metadata.num_row_groups):
                rows = self._batch_rows(file, group, columns, number)
                for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
                    labels = [batch.column(name) for name in self.label_columns]
                    # row by row: a text that stands in many rows is not copied for each at once
                    for place, text in enumerate(batch.column(self.text_column)):
                        value = text.value if isinstance(text, pa.DictionaryScalar) else text
                        if value.is_valid and hasattr(value, "as_buffer"):
                            require_text_size(value.as_buffer().size, self.where(number))
                        yield number, text.as_py(), tuple(label[place].as_py() for label in labels)
                        number += 1

    def _batch_rows(self, file: Any, group: int, columns: list[str], number: int) -> int:
        """Rows of a row group to be read at once: few where they may be large."""
        about = file.metadata.row_group(group)
        chunks = [about.column(i) for i in range(about.num_columns)]
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema in columns)
        if size > len(columns) * MOST_LINE * max(about.num_rows, 1):
            last = number + about.num_rows - 1
            require_text_size(size // about.num_rows, f"{self.path} rows {number} to {last}, on average")
        return _BATCH_ROWS if size <= MOST_GROUP else 1

    def where(self, number: int) -> str:
        """File and row."""
        return f"{self.path} row {number}"

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            schema = pq.read_schema(self.path)
            # a column of plain strings that is read as a dictionary holds no text twice
            is_one = schema.names.count(self.text_column) == 1
            is_plain = is_one and pa.types.is_string(schema.field(self.text_column).type)
            with pq.ParquetFile(self.path, read_dictionary=[self.text_column] if is_plain else []) as file:
                yield file
        except (pa.ArrowInvalid, OSError) as error:
            raise failure(self.path, error, " as Parquet") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path} holds text that is not UTF-8: {one_line(error)}") from None


@dataclass(frozen=True)
class JsonLinesReader:
    """One JSON object a line; empty lines are passed over. `.gz` is unpacked on the way."""

    path: Path
    text_column: str
    label_columns: tuple[str, ...]

    def label_dtypes(self) -> dict[str, str]:
        """Types of the first values that are not null; the first object must hold every column."""
        for line, content in self._objects():
            check_columns((self.text_column, *self.label_columns), content, self.where(line))
            break
        return infer_dtypes((labels for _, _, labels in self.records()), self.label_columns, str(self.path))

    def text_bytes(self) -> int:
        """Size of the file, unpacked."""
        size = self.path.stat().st_size
        return size * _GZIP_RATIO if self.path.suffix == ".gz" else size

    def first_rows(self, n: int) -> pl.DataFrame:
        """The first objects; a column whose values are of several types is of type Object."""
        return frame_of_rows([content for _, content in islice(self._objects(), n)])

    def records(self) -> Iterator[Record]:
        """Lines, numbered from 1; a key that is missing is null."""
        for line, content in self._objects():
            labels = tuple(content.get(name) for name in self.label_columns)
            yield line, content.get(self.text_column), labels

    def where(self, number: int) -> str:
        """File and line."""
        return f"{self.path}:{number}"

    def _objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._open() as file:
            # of a line that is too long no more is read than shows that it is
            for line, data in enumerate(iter(lambda: file.readline(MOST_LINE + 1), b""), start=1):
                if len(data) > MOST_LINE:
                    raise InputError(
                        f"{self.where(line)} is a line of more than {MOST_LINE:,} bytes: each line is one "
                        "JSON object; cut its text into several documents"
                    )
                if data.strip():
                    yield line, self._object(line, data)

    def _object(self, line: int, data: bytes) -> dict[str, Any]:
        pairs: list[tuple[str, Any]] = []

        def keep(some: list[tuple[str, Any]]) -> dict[str, Any]:
            pairs[:] = some  # the outermost object ends last, and has the columns
            return dict(some)

        try:
            # A byte order mark can only stand in the first line; Windows editors put it there.
            text = data.decode("utf-8-sig" if line == 1 else "utf-8")
            content = json.loads(text, object_pairs_hook=keep)
        except UnicodeDecodeError as error:
            raise InputError(f"{self.where(line)} is not UTF-8: {one_line(error)}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.where(line)} is not JSON: {one_line(error)[:300]}") from None
        if not isinstance(content, dict):
            raise InputError(f"{self.where(line)} is not a JSON object but {type(content).__name__}")
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            for name in (self.text_column, *self.label_columns):
                if keys.count(name) > 1:
                    raise InputError(f"{self.where(line)} has the key {name!r} twice: keep one of them")
        return content

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        try:
            with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as file:
                yield file  # type: ignore[misc]
        except (OSError, EOFError, zlib.error) as error:
            raise failure(self.path, error) from None


@dataclass(frozen=True)
class TextReader:
    """A text file: one document, no labels."""

    path: Path
    text_column: str
    label_columns: tuple[str, ...]

    def label_dtypes(self) -> dict[str, str]:
        """No columns at all."""
        check_columns(self.label_columns, (), str(self.path))
        return {}

    def text_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    def first_rows(self, n: int) -> pl.DataFrame:  # noqa: ARG002 - it has no columns
        """Nothing: a text file has no columns."""
        return pl.DataFrame()

    def records(self) -> Iterator[Record]:
        """The one document."""
        try:
            with self.path.open("rb") as file:
                content = file.read(MOST_TEXT + 1)
            if len(content) > MOST_TEXT:
                require_text_size(max(self.path.stat().st_size, len(content)), str(self.path))
            yield 0, content.decode("utf-8-sig"), ()
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path} is not UTF-8: {one_line(error)}") from None
        except OSError as error:
            raise failure(self.path, error) from None

    def where(self, number: int) -> str:  # noqa: ARG002 - a text file has one document
        """The file."""
        return str(self.path)


FORMATS: dict[str, Callable[[Path, str, tuple[str, ...]], Reader]] = {
    ".parquet": ParquetReader,
    ".jsonl": JsonLinesReader,
    ".jsonl.gz": JsonLinesReader,
    ".csv": CsvReader,
    ".txt": TextReader,
}
"""End of a file's name -> its reader."""


def format_of(path: Path) -> str | None:
    """The key of FORMATS that the file's name ends with."""
    return next((end for end in FORMATS if path.name.lower().endswith(end)), None)
