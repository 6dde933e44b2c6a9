"""A reader of CSV files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.csv as pc

from pipeline.sources.text.columns import Record, failure, frame_of, label_dtypes
from pipeline.sources.values import MOST_TEXT, check_columns
from schemas.errors import InputError


@dataclass(frozen=True)
class CsvReader:
    """A CSV file whose first line names the columns; types are those of its first 64 MiB.

    An empty field is null, but an empty text is an empty document. Dates and times are labels of type String.
    """

    path: Path
    text_column: str
    label_columns: tuple[str, ...]

    def label_dtypes(self) -> dict[str, str]:
        """The types of the first block; a column that is empty there says nothing."""
        schema = self._schema()
        check_columns((self.text_column, *self.label_columns), schema.names, str(self.path))
        return label_dtypes(self.path, schema, self.label_columns)

    def text_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    def first_rows(self, n: int) -> pl.DataFrame:
        """The first rows of the file."""
        schema = self._schema()
        return frame_of(islice(self._batches(schema), 1), schema).head(n)

    def records(self) -> Iterator[Record]:
        """Rows, numbered from 0."""
        schema, number = self._schema(), 0
        check_columns((self.text_column, *self.label_columns), schema.names, str(self.path))
        for batch in self._batches(schema):
            columns = [batch.column(name) for name in (self.text_column, *self.label_columns)]
            for text, *labels in zip(*columns, strict=True):
                yield number, text.as_py() or "", tuple(label.as_py() for label in labels)
                number += 1

    def where(self, number: int) -> str:
        """File and row."""
        return f"{self.path} row {number}"

    def _schema(self) -> pa.Schema:
        """Names and types of the columns: the text is text, whatever it looks like, and so are dates."""
        with self._failures(), self._open() as reader:
            schema = reader.schema
        for name in schema.names:
            if schema.names.count(name) > 1:
                raise InputError(f"{self.path} has several columns {name!r}: rename all but one")
        kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
        return pa.schema(
            (f.name, f.type)
            if f.name != self.text_column and any(is_kind(f.type) for is_kind in kinds)
            else (f.name, pa.string())
            for f in schema
        )

    def _batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        with self._failures(), self._open(schema) as reader:
            yield from reader

    def _open(self, schema: pa.Schema | None = None) -> pc.CSVStreamingReader:
        types = {} if schema is None else {f.name: f.type for f in schema if not pa.types.is_null(f.type)}
        return pc.open_csv(
            self.path,
            # a row, which may be one long document, must fit into a block
            read_options=pc.ReadOptions(block_size=MOST_TEXT),
            parse_options=pc.ParseOptions(newlines_in_values=True),
            # an empty field is the only one that is null: NA and nan may be words
            convert_options=pc.ConvertOptions(
                column_types=types,
                strings_can_be_null=True,
                null_values=[""],
                quoted_strings_can_be_null=False,
            ),
        )

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowInvalid, OSError) as error:
            raise failure(self.path, error, " as CSV") from None
