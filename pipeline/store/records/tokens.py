"""The lake's record, the corpus chain, and token shards on disk.

Shapes: N rows, C contexts, S segments, M documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.statistics.features.ragged import run_starts
from pipeline.store.formats.parquet import open_parquet
from pipeline.store.objects.verbs import read_bytes, read_record, readable
from pipeline.store.records.token_rows import document_of_row, stored_mask
from schemas.errors import InputError, ShardError
from schemas.layout import Layout
from schemas.records import CorpusLink, Counted, Lake, ShardRecord
from schemas.values import I64, Bool, Packed, RowSelection, TokenShard

_ARROW = {"String": pa.string(), "Int64": pa.int64(), "Float64": pa.float64(), "Boolean": pa.bool_()}
_READ = ["token_ids", "counted", "segments.list.element.document", "segments.list.element.start"]


def read_lake(layout: Layout) -> Lake | None:
    """The lake's record; None where nothing was tokenized yet."""
    return read_record(Lake, layout.lake)


def require_lake(layout: Layout) -> Lake:
    """The lake's record; InputError where nothing was tokenized yet."""
    if (lake := read_lake(layout)) is None:
        raise InputError(f"{layout.root} holds no tokens yet: run `latentlake tokenize` first")
    return lake


def read_links(layout: Layout) -> list[CorpusLink]:
    """The corpus chain, from link 0 up to the last one."""
    links: list[CorpusLink] = []
    while (link := read_record(CorpusLink, layout.corpus_link(len(links)))) is not None:
        links.append(link)
    return links


class StoredTokens(NamedTuple):
    """What a store records of its tokens: the lake (None where nothing was tokenized), the corpus chain."""

    lake: Lake | None
    links: list[CorpusLink]

    @property
    def shards(self) -> list[ShardRecord]:
        """Of all links, in order."""
        return [record for link in self.links for record in link.shards]


def read_stored_tokens(layout: Layout) -> StoredTokens:
    """The records as they are now."""
    return StoredTokens(read_lake(layout), read_links(layout))


def token_shard_bytes(
    packed: Packed,
    counted: Bool,
    document_numbers: NDArray[np.uint64],
    labels: Sequence[Sequence[Any]],
    label_columns: dict[str, str],
    inputs: NDArray[Any] | None = None,
) -> bytes:
    """A token shard as Parquet (`schemas.tables.tables.tokens_schema`), the same bytes for the same content.

    `document_numbers` uint64 [M] and `labels`, one sequence [M] per column, belong to the documents that were
    packed; `inputs` [N, width] are the vectors of its rows, where the corpus holds some.
    """
    columns = {
        name: pa.array(values, type=_ARROW[dtype])
        for (name, dtype), values in zip(label_columns.items(), labels, strict=True)
    }
    segments = {
        "document": pa.array(document_numbers[packed.document]),
        "start": pa.array(packed.start),
        "offset": pa.array(packed.offset),
        **{name: values.take(pa.array(packed.document)) for name, values in columns.items()},
    }
    vectors = {}
    if inputs is not None:
        flat = pa.FixedSizeListArray.from_arrays(pa.array(inputs.reshape(-1)), inputs.shape[1])
        vectors["inputs"] = _lists(packed.context_ptr, flat)
    table = pa.table(
        {
            "row_offset": pa.array(packed.context_ptr[:-1].astype(np.uint64)),
            "token_ids": _lists(packed.context_ptr, pa.array(packed.token_ids)),
            "segments": _lists(packed.segment_ptr, pa.StructArray.from_arrays(segments.values(), segments)),
            "counted": _lists(packed.context_ptr, pa.array(counted)),
            **vectors,
            **{name: _shared(values, packed) for name, values in columns.items()},
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


def _lists(pointers: I64, values: pa.Array) -> pa.ListArray:
    """Cut `values` by `pointers` [C + 1]."""
    assert len(values) < 2**31, "a shard holds fewer than 2^31 tokens"
    return pa.ListArray.from_arrays(pa.array(pointers.astype(np.int32)), values)


def _shared(values: pa.Array, packed: Packed) -> pa.Array:
    """The label [M] that all segments of a context share, null where they differ: [C]."""
    # a number for each label, -1 for null: those of a context are all the same where least and largest are
    codes = values.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)[packed.document]
    firsts = packed.segment_ptr[:-1]
    differs = np.minimum.reduceat(codes, firsts) != np.maximum.reduceat(codes, firsts)
    return values.take(pa.array(packed.document[firsts], mask=differs))


@dataclass(frozen=True)
class _Columns:
    """What a token shard's file holds, flattened as in Packed."""

    table: pa.Table

    def flat(self, name: str) -> pa.Array:
        """Values of a list column, one after another."""
        return self._lists(name).values

    def pointers(self, name: str) -> I64:
        """Where the lists of a column start and end, int64 [C + 1]."""
        pointers: I64 = self._lists(name).offsets.to_numpy().astype(np.int64)
        return pointers

    def _lists(self, name: str) -> pa.ListArray:
        return self.table.column(name).combine_chunks()


def read_token_shard(
    layout: Layout, lake: Lake, record: ShardRecord, verify: bool = True, inputs: bool = False
) -> TokenShard:
    """Read a token shard; its first row and context are numbered by `record`.

    The vectors of its rows, which are most of what such a lake holds, are read where `inputs` is True.
    ShardError (an InputError) that names the file when it is missing, or when its sha256 is not the recorded
    one (not checked with `verify` False).
    """
    data, vectors = _checked(layout, record, verify), lake.inputs if inputs else None
    with readable(layout.tokens(record.name)), pq.ParquetFile(pa.BufferReader(data)) as file:
        columns = _Columns(file.read(columns=[*_READ, *([] if vectors is None else ["inputs"])]))
        context_ptr, segments = columns.pointers("token_ids"), columns.flat("segments")
        token_ids, x = columns.flat("token_ids").to_numpy(), None
        if vectors is not None:
            x = columns.flat("inputs").flatten().to_numpy().reshape(-1, vectors.width)
        return TokenShard(
            name=record.name,
            row_start=record.row_start,
            context_start=record.context_start,
            token_ids=token_ids,
            context_ptr=context_ptr,
            counted=columns.flat("counted").to_numpy(zero_copy_only=False),
            stored=stored_mask(token_ids, context_ptr, lake.special_ids, lake.special_tokens),
            document=document_of_row(
                segments.field("document").to_numpy(),
                segments.field("start").to_numpy(),
                columns.pointers("segments"),
                context_ptr,
            ),
            inputs=x,
        )


def label_value(label: pl.Expr, dtype: str) -> pl.Expr:
    """A label as all readers see it: NaN and infinity are missing values, as null is, and -0.0 is 0.0."""
    if dtype != "Float64":
        return label
    return pl.when(label == 0).then(0.0).when(label.is_finite()).then(label)


def read_document_labels(layout: Layout, record: ShardRecord, names: Sequence[str]) -> pl.DataFrame:
    """`document` u64 and label columns, as strings, of each document of a shard, in order: [M].

    They are those of `label_value`.
    """
    path, segment = layout.tokens(record.name), "segments.list.element."
    with readable(path), open_parquet(path) as file:
        columns = _Columns(file.read(columns=[segment + name for name in ("document", *names)]))
    segments = columns.flat("segments")
    document = segments.field("document").to_numpy()
    # documents of a shard ascend, and all segments of one bear its labels: its first segment will do
    first = run_starts(document)
    labels = {name: pl.Series(pl.from_arrow(segments.field(name)))[first] for name in names}
    labelled = pl.DataFrame(labels).select(
        label_value(pl.col(name), str(values.dtype)).alias(name).cast(pl.String)
        for name, values in labels.items()
    )
    return pl.DataFrame({"document": document[first]}).hstack(labelled)


def counted_for(shard: TokenShard, selection: RowSelection) -> Counted | None:
    """What a site's receipt records as counted of a shard already cut to what the site reads."""
    if selection.all_rows:
        return None
    totals = shard.totals()
    return Counted(rows=totals.counted_rows, contexts=totals.contexts, documents=totals.documents)


def _checked(layout: Layout, record: ShardRecord, verify: bool) -> bytes:
    """The file's bytes, read once and compared with the record."""
    path = layout.tokens(record.name)
    remedy = "restore it from a copy of the store, or tokenize into a new store.root"
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise ShardError(f"token shard {path} is missing; {remedy}") from None
    digest = hashlib.sha256(data).hexdigest() if verify else record.sha256
    if digest != record.sha256:
        raise ShardError(
            f"token shard {path} is damaged (its sha256 is {digest}, the recorded one {record.sha256}); "
            f"{remedy}"
        )
    return data
