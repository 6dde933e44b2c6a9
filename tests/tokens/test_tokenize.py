"""From a corpus to token shards and records, against the documents' own tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.sources import open_source
from pipeline.store.records.tokens import (
    StoredTokens,
    read_lake,
    read_links,
    read_stored_tokens,
    read_token_shard,
)
from pipeline.tokens.lake_rule import RESERVED, requested_lake
from pipeline.tokens.tokenize import tokenize
from pipeline.tokens.tokenizer import LakeTokenizer, load_tokenizer
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import CorpusLink, Inputs, ShardRecord, digest_of
from schemas.run.file import RunFile, parse_run_file
from schemas.tables.tables import tokens_schema
from schemas.values import TokenShard
from tests.kit import write_tiny_tokenizer

BOS, EOS, UNKNOWN = 0, 1, 2
NOTHING = StoredTokens(None, [])
DOCUMENTS = ["w0 w1 w2", "w3 w4 w5 w6 w7 w8 w9", "", "w10", "w11 nowhere w12", ""]
"""Token ids: word n has id n + 3; `nowhere` is unknown, a special id."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> LakeTokenizer:
    return load_tokenizer(str(write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


class Lake:
    """A folder with a corpus and a store, and tokenize over them."""

    def __init__(self, folder: Path, tokenizer: LakeTokenizer) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.layout = Layout(folder / "store")
        self.seen: list[ShardRecord] = []

    def write(self, documents: list[str], name: str = "corpus", **labels: list[Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = [
            json.dumps({"text": text, **{k: v[i] for k, v in labels.items()}})
            for i, text in enumerate(documents)
        ]
        (self.folder / f"{name}.jsonl").write_text("".join(row + "\n" for row in rows))

    def tokenize(
        self,
        name: str = "corpus",
        append: bool = False,
        **changes: Any,
    ) -> CorpusLink:
        run_file, stored = self.run_file(name, **changes), read_stored_tokens(self.layout)
        return tokenize(
            self.layout, stored, run_file, self.tokenizer, append=append, progress=self.seen.append
        )

    def run_file(
        self, name: str, labels: tuple[str, ...] = (), workers: int = 1, bos: bool = True, **tokens: Any
    ) -> RunFile:
        content = {
            "corpus": {"path": str(self.folder / f"{name}.jsonl"), "label_columns": labels},
            "tokens": {"shard_tokens": 8, "context_size": 4, "prepend_bos": bos, **tokens},
            "model": {"path": "unused"},
            "sites": [{"sae": "unused"}],
            "store": {"root": str(self.layout.root)},
            "extract": {"workers": workers},
        }
        return parse_run_file(content, "run.yaml")

    def records(self) -> list[ShardRecord]:
        return [record for link in read_links(self.layout) for record in link.shards]

    def shards(self) -> list[TokenShard]:
        lake = read_lake(self.layout)
        assert lake is not None
        return [read_token_shard(self.layout, lake, record) for record in self.records()]

    def table(self) -> pl.DataFrame:
        return pl.concat(pl.read_parquet(self.layout.tokens(r.name)) for r in self.records())

    def files(self) -> dict[str, bytes]:
        root = self.layout.root
        return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def lake(tmp_path: Path, tokenizer: LakeTokenizer) -> Lake:
    made = Lake(tmp_path, tokenizer)
    made.write(DOCUMENTS)
    return made


def ids_of(text: str) -> list[int]:
    return [int(word[1:]) + 3 if word != "nowhere" else UNKNOWN for word in text.split()]


def documents_in(lake: Lake) -> dict[int, list[int]]:
    """Token ids by document, put together from the stored segments."""
    result: dict[int, list[int]] = {}
    for ids, segments in lake.table().select("token_ids", "segments").iter_rows():
        ends = [segment["start"] for segment in segments[1:]] + [len(ids)]
        for segment, end in zip(segments, ends, strict=True):
            tokens = result.setdefault(segment["document"], [])
            assert len(tokens) == segment["offset"]
            tokens += ids[segment["start"] : end]
    return result


WORDS = st.sampled_from(["w0", "w1", "w59", "nowhere"])
TEXTS = st.lists(st.lists(WORDS, max_size=9).map(" ".join), min_size=1, max_size=7)


@settings(max_examples=25, deadline=None)
@given(texts=TEXTS, target=st.integers(1, 20), size=st.integers(2, 6), bos=st.booleans())
def test_every_document_comes_back_from_the_store(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: LakeTokenizer,
    texts: list[str],
    target: int,
    size: int,
    bos: bool,
) -> None:
    made = Lake(tmp_path_factory.mktemp("lake"), tokenizer)
    made.write(["w5", *texts])
    link = made.tokenize(context_size=size, bos=bos, shard_tokens=target)
    expected = {n: [*ids_of(text), EOS] for n, text in enumerate(["w5", *texts]) if text}
    assert documents_in(made) == expected
    assert sum(record.documents for record in link.shards) == 1 + len(texts)


def test_what_the_store_holds_by_hand(lake: Lake) -> None:
    lake.tokenize()
    contexts = [[0, 3, 4, 5], [0, 1, 6, 7], [0, 8, 9, 10], [0, 11, 12, 1]]
    later = [[0, 13, 1, 14], [0, 2, 15, 1]]
    assert lake.table()["token_ids"].to_list() == contexts + later
    assert lake.table()["row_offset"].to_list() == [0, 4, 8, 12, 0, 4]
    assert [(r.name, r.rows, r.documents) for r in lake.records()] == [("000000", 16, 3), ("000001", 8, 3)]


def test_records_count_what_the_shards_hold(lake: Lake) -> None:
    lake.tokenize()
    row_start = context_start = document_start = 0
    for record, shard in zip(lake.records(), lake.shards(), strict=True):
        counted = ~np.isin(shard.token_ids, [BOS, EOS, UNKNOWN])
        contexts = [counted[a:b] for a, b in zip(shard.context_ptr, shard.context_ptr[1:], strict=False)]
        assert shard.counted.tolist() == shard.stored.tolist() == counted.tolist()
        assert record.counted_rows == counted.sum()
        assert (record.contexts, record.counted_contexts) == (len(contexts), sum(c.any() for c in contexts))
        assert record.counted_documents == len(set(shard.document[counted].tolist()))
        assert (record.row_start, shard.row_start) == (row_start, row_start)
        assert (record.context_start, shard.context_start) == (context_start, context_start)
        assert record.document_start == document_start
        row_start += shard.n_rows
        context_start += shard.n_contexts
        document_start += record.documents
    assert document_start == len(DOCUMENTS)


def test_a_context_or_document_of_special_tokens_only_is_not_counted(lake: Lake) -> None:
    lake.write(["w0 w1 w2", "nowhere nowhere"])
    (record,) = lake.tokenize(shard_tokens=99).shards
    assert lake.table()["token_ids"].to_list() == [[0, 3, 4, 5], [0, 1, 2, 2], [0, 1]]
    assert (record.contexts, record.counted_contexts) == (3, 1)
    assert (record.documents, record.counted_documents) == (2, 1)


@pytest.mark.parametrize(
    ("policy", "counted", "stored"),
    [("exclude", 3, 3), ("zero", 7, 3), ("include", 7, 7), ("zero_first", 7, 5)],
)
def test_the_policy_moves_the_masks_and_never_the_tokens(
    lake: Lake, policy: str, counted: int, stored: int
) -> None:
    lake.write(["w0 w1 nowhere w2"])
    lake.tokenize(special_tokens=policy)
    (shard,) = lake.shards()
    assert shard.token_ids.tolist() == [0, 3, 4, 2, 0, 5, 1]
    assert (shard.counted.sum(), shard.stored.sum()) == (counted, stored)
    assert lake.records()[0].counted_rows == counted


def test_a_shard_closes_with_the_document_that_reaches_its_size(lake: Lake) -> None:
    lake.write(["w0 w1", "w2 w3", "w4 w5 w6 w7 w8 w9", "w1"])
    link = lake.tokenize(shard_tokens=8)
    assert [record.documents for record in link.shards] == [2, 1, 1]
    assert [record.rows for record in link.shards] == [8, 10, 3]


def test_empty_documents_are_counted_with_the_shard_before_them(lake: Lake) -> None:
    lake.write(["", "w0", "", "", "w1", ""])
    link = lake.tokenize(shard_tokens=1)
    assert [record.documents for record in link.shards] == [4, 2]
    assert list(documents_in(lake)) == [1, 4]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("shard_tokens", [1, 7, 99])
@pytest.mark.parametrize("limit", range(2, 30))
def test_the_limit_cuts_the_last_document_exactly(
    lake: Lake, limit: int, shard_tokens: int, bos: bool
) -> None:
    whole = Lake(lake.folder / "whole", lake.tokenizer)
    whole.write(DOCUMENTS)
    whole.tokenize(bos=bos, shard_tokens=shard_tokens)
    lake.tokenize(bos=bos, shard_tokens=shard_tokens, limit=limit)
    tokens = [id_ for shard in lake.shards() for id_ in shard.token_ids.tolist()]
    everything = [id_ for shard in whole.shards() for id_ in shard.token_ids.tolist()]
    assert tokens == everything[: len(tokens)]
    missing = min(limit, len(everything)) - len(tokens)
    assert missing == 0 or (missing == 1 and bos and everything[len(tokens)] == BOS)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("limit", [None, 9])
@pytest.mark.parametrize("document_limit", [1, 3, 99])
def test_of_each_document_the_first_tokens_alone_are_taken(
    lake: Lake, document_limit: int, limit: int | None, bos: bool
) -> None:
    cut = Lake(lake.folder / "cut", lake.tokenizer)
    cut.write([" ".join(text.split()[:document_limit]) for text in DOCUMENTS])
    expected = cut.tokenize(bos=bos, limit=limit)
    link = lake.tokenize(bos=bos, limit=limit, document_limit=document_limit)
    assert link.shards == expected.shards
    assert [record.sha256 for record in lake.records()] == [record.sha256 for record in cut.records()]
    assert link.source["document_limit"] == document_limit


def test_more_of_each_document_is_another_corpus_and_repeats_this_one(lake: Lake) -> None:
    first = lake.tokenize(document_limit=3)
    assert lake.tokenize(document_limit=3) == first
    with pytest.raises(
        InputError, match=r"limit None, document_limit 3\) than .* limit None, document_limit 4"
    ):
        lake.tokenize(document_limit=4)
    with pytest.raises(InputError, match="would count twice"):
        lake.tokenize(document_limit=4, append=True)


def test_a_corpus_without_the_key_has_the_digest_that_it_always_had(lake: Lake) -> None:
    source, link = open_source(lake.run_file("corpus").corpus), lake.tokenize(limit=9)
    assert link.source_digest == digest_of([source.digest(), "text", 9])


def test_a_document_longer_than_a_context_of_its_own_may_be_cut_to_fit(lake: Lake) -> None:
    link = lake.tokenize(contexts="document", document_limit=3, separator="none")
    assert [shard.context_ptr.tolist() for shard in lake.shards()] == [[0, 4, 8], [0, 2, 6]]
    assert link.source["document_limit"] == 3


def test_nothing_is_read_far_beyond_the_limit(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def count(documents: Any) -> Iterator[Any]:
        for document in documents:
            read.append(document.number)
            yield document

    from pipeline.tokens import sharding

    whole = sharding._batches
    monkeypatch.setattr(sharding, "_BATCH_DOCUMENTS", 5)
    monkeypatch.setattr(sharding, "_batches", lambda documents: whole(count(documents)))
    lake.write(["w1"] * 1000)
    lake.tokenize(limit=12)
    assert len(read) <= 20


def test_the_labels_of_segments_and_contexts_are_stored(lake: Lake) -> None:
    labels = {
        "year": [1, 2, 2],
        "won": [True, True, True],
        "share": [0.5, None, None],
        "who": ["a", "b", "b"],
    }
    lake.write(["w0 w1 w2 w3", "w4", "w5 w6"], **labels)
    link = lake.tokenize(labels=tuple(labels), shard_tokens=99)
    table = lake.table()
    result = read_lake(lake.layout)
    assert result is not None
    assert table.schema == pl.Schema(tokens_schema(result.label_columns))
    assert [[s["document"] for s in segments] for segments in table["segments"]] == [[0], [0, 1], [1, 2], [2]]
    assert [[s["year"] for s in segments] for segments in table["segments"]] == [[1], [1, 2], [2, 2], [2]]
    assert table["year"].to_list() == [1, None, 2, 2]
    assert table["who"].to_list() == ["a", None, "b", "b"]
    assert table["won"].to_list() == [True] * 4
    assert table["share"].to_list() == [0.5, None, None, None]
    assert link.source["label_columns"] == sorted(labels)


def test_the_lake_tells_the_rule(lake: Lake) -> None:
    lake.tokenize(bos=False, separator="none")
    result = read_lake(lake.layout)
    assert result is not None
    assert (result.context_size, result.bos_id, result.separator_id, result.special_ids) == (
        4,
        None,
        None,
        (0, 1, 2),
    )
    assert (result.tokenizer, result.tokenizer_digest) == (lake.tokenizer.name, lake.tokenizer.digest)


def test_progress_is_reported_every_shard_in_order(lake: Lake) -> None:
    assert lake.seen == list(lake.tokenize().shards) == lake.records()


def test_a_second_call_does_nothing(lake: Lake) -> None:
    first = lake.tokenize()
    times = {path: path.stat().st_mtime_ns for path in lake.layout.root.rglob("*")}
    lake.seen.clear()
    assert (
        lake.tokenize()
        == lake.tokenize(append=True)
        == lake.tokenize(shard_tokens="auto", workers=9)
        == first
    )
    assert {path: path.stat().st_mtime_ns for path in lake.layout.root.rglob("*")} == times
    assert lake.seen == []


def test_the_same_corpus_gives_the_same_bytes_whatever_the_batches(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.tokenize()
    again = Lake(lake.folder, lake.tokenizer)
    again.layout = Layout(lake.folder / "again")
    monkeypatch.setattr("pipeline.tokens.sharding._BATCH_SIZE", 1)
    again.tokenize()
    assert again.files() == lake.files()


def test_a_run_that_died_leaves_nothing_that_counts(lake: Lake) -> None:
    whole = Lake(lake.folder, lake.tokenizer)
    whole.layout = Layout(lake.folder / "whole")
    whole.tokenize()

    def die(record: ShardRecord) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize(lake.layout, NOTHING, lake.run_file("corpus"), lake.tokenizer, progress=die)
    assert (read_lake(lake.layout), read_links(lake.layout)) == (None, [])
    lake.tokenize()
    assert lake.files() == whole.files()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context_size": 5}, r"tokens\.context_size \(4 in the store, 5 now\)"),
        ({"bos": False}, r"tokens\.prepend_bos \(0 in the store, None now\)"),
        ({"separator": "none"}, r"tokens\.separator \(1 in the store, None now\)"),
        ({"special_tokens": "zero"}, r"tokens\.special_tokens \(exclude in the store, zero now\)"),
        ({"labels": ("year",)}, r"corpus\.label_columns \(\{\} in the store, \{'year': 'Int64'\} now\)"),
        ({"shard_tokens": 9}, r"shard_tokens is 9, but the store .* was tokenized with 8"),
    ],
)
@pytest.mark.parametrize("append", [False, True])
def test_another_rule_than_the_stores_is_named(
    lake: Lake, change: dict[str, Any], message: str, append: bool
) -> None:
    lake.write(["w0", "w1"], year=[1, 2])
    lake.tokenize()
    before = lake.files()
    with pytest.raises(InputError, match=message):
        lake.tokenize(append=append, **change)
    assert lake.files() == before


def test_another_tokenizer_than_the_stores_is_named(lake: Lake, tmp_path: Path) -> None:
    lake.tokenize()
    lake.tokenizer = load_tokenizer(str(write_tiny_tokenizer(tmp_path / "bytes", "bytes")))
    with pytest.raises(InputError, match=r"tokens\.tokenizer \("):
        lake.tokenize()


@pytest.mark.parametrize("change", [{"name": "other"}, {"limit": 9}])
def test_another_corpus_needs_append(lake: Lake, change: dict[str, Any]) -> None:
    lake.write(["w1"], "other")
    lake.tokenize()
    with pytest.raises(InputError, match=r"holds another corpus .*corpus\.jsonl.*: add it with --append"):
        lake.tokenize(**change)


def test_append_numbers_everything_on(lake: Lake) -> None:
    lake.write(["w20 w21", "w22"], "other")
    first = lake.tokenize()
    second = lake.tokenize("other", append=True, shard_tokens=1)
    assert read_links(lake.layout) == [first, second]
    assert [record.name for record in lake.records()] == ["000000", "000001", "000002", "000003"]
    expected = {
        0: "w0 w1 w2",
        1: "w3 w4 w5 w6 w7 w8 w9",
        3: "w10",
        4: "w11 nowhere w12",
        6: "w20 w21",
        7: "w22",
    }
    assert documents_in(lake) == {n: [*ids_of(text), EOS] for n, text in expected.items()}
    last = lake.records()[-1]
    assert (last.row_start, last.context_start, last.document_start) == (28, 7, 7)
    assert lake.tokenize("other", shard_tokens="auto") == second


@pytest.mark.parametrize("documents", [[""], ["", ""], [" "]])
def test_a_corpus_without_tokens_is_refused(lake: Lake, documents: list[str]) -> None:
    lake.write(documents)
    with pytest.raises(InputError, match=r"corpus\.jsonl' yields no tokens$"):
        lake.tokenize()
    assert lake.files() == {"tokens/.lock": b""}  # the lock is not content


def test_a_corpus_without_documents_is_refused(lake: Lake) -> None:
    (lake.folder / "corpus.jsonl").write_text("")
    with pytest.raises(InputError, match="yields no token"):
        lake.tokenize()


def test_a_limit_too_small_for_a_token_is_refused(lake: Lake) -> None:
    with pytest.raises(InputError, match=r"yields no tokens within tokens\.limit 1"):
        lake.tokenize(limit=1)


def test_a_corpus_of_special_tokens_only_is_refused_where_they_are_excluded(lake: Lake) -> None:
    lake.write(["nowhere", "nowhere nowhere"])
    with pytest.raises(InputError, match="only special tokens"):
        lake.tokenize()
    assert read_links(lake.layout) == []
    assert lake.tokenize(special_tokens="include").shards[0].counted_rows == 7


def test_a_tokenizer_without_eos_is_refused_where_texts_are_to_end_with_it(lake: Lake) -> None:
    lake.tokenizer = load_tokenizer(str(write_tiny_tokenizer(lake.folder / "lacks", eos=False)))
    with pytest.raises(InputError, match=r"has no EOS token; set tokens\.separator: none, or name a token"):
        lake.tokenize()
    lake.tokenize(separator="none")


@pytest.mark.parametrize("label", RESERVED)
def test_a_label_that_is_called_as_a_column_of_the_store_is_refused_before_anything_is_written(
    lake: Lake, label: str
) -> None:
    lake.write(["w0"], **{label: [1]})
    with pytest.raises(InputError, match=f"names '{label}', a column of the store's own; rename it in the"):
        lake.tokenize(labels=(label,))
    assert not lake.layout.root.exists()


def test_a_label_that_is_called_inputs_clashes_in_a_corpus_of_vectors_alone(lake: Lake) -> None:
    lake.write(["w0", "w1"], inputs=["a", "b"])
    link = lake.tokenize(labels=("inputs",))
    assert lake.tokenize(labels=("inputs",)) == link
    assert {s["inputs"] for segments in lake.table()["segments"] for s in segments} == {"a", "b"}
    assert all(shard.inputs is None for shard in lake.shards())
    inputs, run_file = Inputs(width=2, dtype="float32", shape=(2,)), lake.run_file("corpus", ("inputs",))
    with pytest.raises(InputError, match="names 'inputs', a column of the store's own"):
        requested_lake(run_file, lake.tokenizer, {"inputs": "String"}, inputs)


@pytest.mark.parametrize(("labels", "message"), [(("row",), "store's own"), (("a", "a"), "'a', twice")])
def test_label_columns_that_clash_are_refused(lake: Lake, labels: tuple[str, ...], message: str) -> None:
    lake.write(["w0"], row=[1], a=[2])
    with pytest.raises(InputError, match=message):
        lake.tokenize(labels=labels)


def test_a_context_that_cannot_hold_a_token_is_refused(lake: Lake) -> None:
    with pytest.raises(InputError, match=r"context_size is 1: too small"):
        lake.tokenize(context_size=1)


def test_two_tokenize_at_once_of_two_corpora_do_not_both_win(lake: Lake) -> None:
    def other(record: ShardRecord) -> None:
        rival = CorpusLink(source={}, source_digest="other", shards=())
        lake.layout.corpus.mkdir(parents=True, exist_ok=True)
        lake.layout.corpus_link(0).write_bytes(rival.to_json())

    with pytest.raises(InputError, match=r"another tokenize wrote .*0\.json meanwhile"):
        tokenize(lake.layout, NOTHING, lake.run_file("corpus"), lake.tokenizer, progress=other)


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        (800_000, None, 25_000),
        (8_000_000, 200_000, 25_000),
        (400, None, 1 << 14),
        (1 << 40, None, 1 << 19),
        (None, None, 1 << 19),
        (None, 800_000, 100_000),
    ],
)
@pytest.mark.parametrize("workers", [1, 5])
def test_auto_makes_a_few_shards_of_a_small_corpus_for_any_number_of_workers(
    lake: Lake, size: int | None, limit: int | None, expected: int, workers: int
) -> None:
    from pipeline.tokens.tokenize import shard_target

    class Sized:
        def estimated_bytes(self) -> int | None:
            return size

        def inputs(self) -> None:
            pass

    run_file = lake.run_file("corpus", workers=workers, limit=limit, shard_tokens="auto")
    assert shard_target(Sized(), run_file.tokens) == expected  # type: ignore[arg-type]
