"""Token shards on disk: written, read back, and looked after."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.store.records.token_rows import counted_mask
from pipeline.store.records.tokens import read_lake, read_links, read_token_shard, token_shard_bytes
from pipeline.tokens.packing import ContextRule, pack
from schemas.errors import InputError, ShardError
from schemas.layout import Layout
from schemas.records import CorpusLink, Lake, ShardRecord
from schemas.tables.tables import tokens_schema

LABELS = {"party": "String", "year": "Int64"}
LAKE = Lake(
    tokenizer="t",
    tokenizer_digest="d",
    context_size=4,
    bos_id=0,
    separator_id=1,
    special_ids=(0, 1),
    special_tokens="zero_first",
    label_columns=LABELS,
)


def shard_bytes(labels: list[list[Any]]) -> bytes:
    documents = [np.array(ids, dtype=np.int32) for ids in ([5, 6], [7, 8, 9])]
    packed = pack(documents, ContextRule(4, 0, 1))
    counted = counted_mask(packed.token_ids, LAKE.special_ids, LAKE.special_tokens)
    return token_shard_bytes(packed, counted, np.array([10, 12], dtype=np.uint64), labels, LABELS)


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Layout, ShardRecord]:
    layout, data = Layout(tmp_path), shard_bytes([["a", None], [None, 2**40]])
    layout.tokens("000000").parent.mkdir()
    layout.tokens("000000").write_bytes(data)
    record = ShardRecord(
        name="000000",
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        row_start=100,
        rows=10,
        counted_rows=10,
        context_start=30,
        contexts=3,
        counted_contexts=3,
        document_start=10,
        documents=3,
        counted_documents=2,
    )
    return layout, record


def test_a_shard_is_read_back_as_it_was_packed(stored: tuple[Layout, ShardRecord]) -> None:
    shard = read_token_shard(stored[0], LAKE, stored[1])
    assert shard.token_ids.tolist() == [0, 5, 6, 1, 0, 7, 8, 9, 0, 1]
    assert shard.context_ptr.tolist() == [0, 4, 8, 10]
    assert shard.document.tolist() == [10] * 4 + [12] * 6
    assert shard.counted.all()
    assert shard.stored.tolist() == [False, True, True, True, False, True, True, True, False, True]
    assert (shard.row_start, shard.context_start, shard.name) == (100, 30, "000000")
    kinds = [shard.token_ids.dtype, shard.context_ptr.dtype, shard.document.dtype, shard.counted.dtype]
    assert kinds == [np.int32, np.int64, np.uint64, np.bool_]


def test_plain_polars_reads_the_file_with_the_schema_reported(stored: tuple[Layout, ShardRecord]) -> None:
    table = pl.read_parquet(stored[0].tokens("000000"))
    assert table.schema == pl.Schema(tokens_schema(LABELS))
    assert table["party"].to_list() == ["a", None, None]
    assert table["year"].to_list() == [None, 2**40, 2**40]


def test_labels_that_differ_leave_the_context_without_one() -> None:
    documents = [np.array([id_], dtype=np.int32) for id_ in (5, 6, 7, 8)]
    packed = pack(documents, ContextRule(4, None, None))
    counted = np.ones(4, dtype=np.bool_)
    for labels, shared in [("aaaa", "a"), ("aaba", None), (["a", "a", None, "a"], None)]:
        data = token_shard_bytes(
            packed, counted, np.arange(4, dtype=np.uint64), [list(labels)], {"x": "String"}
        )
        assert pl.read_parquet(data)["x"].to_list() == [shared]


def test_the_same_content_gives_the_same_bytes() -> None:
    labels = [["a", "b"], [1, 2]]
    assert shard_bytes(labels) == shard_bytes(labels) != shard_bytes([["a", "b"], [1, 3]])


def test_a_damaged_file_is_named_unless_nobody_wants_to_know(stored: tuple[Layout, ShardRecord]) -> None:
    layout, record = stored
    layout.tokens("000000").write_bytes(shard_bytes([["a", "b"], [1, 2]]))
    with pytest.raises(ShardError, match=r"000000\.parquet is damaged \(its sha256 is "):
        read_token_shard(layout, LAKE, record)
    assert read_token_shard(layout, LAKE, record, verify=False).n_rows == 10


def test_a_missing_file_is_named(stored: tuple[Layout, ShardRecord]) -> None:
    stored[0].tokens("000000").unlink()
    with pytest.raises(ShardError, match=r"000000\.parquet is missing; restore it"):
        read_token_shard(stored[0], LAKE, stored[1])


def test_a_folder_that_is_no_store_has_no_lake_and_no_links(tmp_path: Path) -> None:
    assert (read_lake(Layout(tmp_path)), read_links(Layout(tmp_path))) == (None, [])


def test_records_are_read_as_written_and_the_chain_ends_at_the_first_gap(tmp_path: Path) -> None:
    layout, links = Layout(tmp_path), [CorpusLink(source={}, source_digest=x, shards=()) for x in "abc"]
    layout.corpus.mkdir()
    layout.lake.write_bytes(LAKE.to_json())
    for number, link in zip((0, 1, 3), links, strict=True):
        layout.corpus_link(number).write_bytes(link.to_json())
    assert read_lake(layout) == LAKE
    assert read_links(layout) == links[:2]


def test_a_newer_lake_says_update(tmp_path: Path) -> None:
    Layout(tmp_path).lake.write_bytes(LAKE.model_copy(update={"format_version": 99}).to_json())
    with pytest.raises(InputError, match=r"lake\.json has format version 99.*update latentlake"):
        read_lake(Layout(tmp_path))
