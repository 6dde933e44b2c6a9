"""A label that is NaN or infinite is a missing value, as null is, for every reader; -0.0 is 0.0."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from jobs.tables.clusters.groups import labels_of
from jobs.tables.importance import values_of
from jobs.tables.profile import profile
from jobs.views.context_matrix import all_contexts
from pipeline.store import FeatureStore
from pipeline.store.derived.profile import Tokens
from pipeline.store.records.tokens import read_document_labels
from pipeline.tasks import OneProcess
from tests.fixtures.runs import extracted, run_file, write_corpus
from tests.kit import write_tiny_tokenizer

DOCUMENTS = 60
WRITTEN = {0: float("nan"), 1: 0.0, 2: float("inf"), 3: -0.0, 4: float("-inf"), 5: 7.5, 6: None, 7: 0.0}
MEANT = {0: None, 1: 0.0, 2: None, 3: 0.0, 4: None, 5: 7.5, 6: None, 7: 0.0}


def lake(folder: Path, values: dict[int, float | None]) -> FeatureStore:
    """A store of documents one of eight of which has each value of `score`; "" and "NaN" are texts."""
    folder.mkdir()
    write_tiny_tokenizer(folder / "tokenizer")
    corpus = pl.read_parquet(write_corpus(folder / "corpus.parquet", DOCUMENTS))
    score = pl.Series("score", [values[n % 8] for n in range(DOCUMENTS)], dtype=pl.Float64)
    texts = pl.Series("text_label", [("", "NaN", None)[n % 3] for n in range(DOCUMENTS)])
    corpus.with_columns(score, texts).write_parquet(folder / "corpus.parquet")
    corpus = {"label_columns": ["score", "text_label", "party"]}
    return extracted(run_file(folder, corpus=corpus, tokens={"contexts": "document", "context_size": 128}))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, FeatureStore]:
    folder = tmp_path_factory.mktemp("lakes")
    return lake(folder / "written", WRITTEN), lake(folder / "meant", MEANT)


def test_token_shards_keep_what_the_corpus_holds(stores: tuple[FeatureStore, FeatureStore]) -> None:
    written, meant = (pl.read_parquet(store.layout.tokens("000000"))["score"] for store in stores)
    assert written.is_nan().any()
    assert written.is_infinite().any()
    assert not meant.is_nan().any()


def test_tests_of_labels_are_those_of_missing_values(stores: tuple[FeatureStore, FeatureStore]) -> None:
    tables = []
    for store in stores:
        profile(store, "mid")
        tables.append(
            [store.scan_table("mid", name).collect() for name in ("labels", "label_trends", "label_values")]
        )
    for written, meant in zip(*tables, strict=True):
        assert written.equals(meant)
    labels, trends, values = tables[0]
    scores = values.filter(label="score")
    assert scores["value"].to_list() == ["0.0", "7.5", None]
    assert scores["documents"].to_list() == [DOCUMENTS // 8 * 3 + 2, DOCUMENTS // 8, DOCUMENTS - 23 - 7 - 0]
    assert set(values.filter(label="text_label")["value"]) == {"", "NaN", None}
    assert labels.filter(pl.col("label") == "score").drop_nulls("p").height
    assert trends.filter(pl.col("label") == "score").drop_nulls("p").height


def test_every_reader_of_labels_sees_them_missing(stores: tuple[FeatureStore, FeatureStore]) -> None:
    written, meant = stores
    ids = pl.Series("row", range(0, 200, 7)).to_numpy()
    assert written.describe_rows(ids).equals(meant.describe_rows(ids))
    columns = ["shard", "context", "row_start", "segments", "counted", "party", "score", "text_label"]
    scans = [store.scan_tokens().select(columns).collect() for store in stores]
    assert scans[0].equals(scans[1])
    for record in written.shards:
        result = [read_document_labels(store.layout, record, ["score", "text_label"]) for store in stores]
        assert result[0].equals(result[1])
        assert {*result[0]["score"]} <= {"0.0", "7.5", None}
    for kind in ("context", "document"):
        frames = [labels_of(store, kind).sort(kind) for store in stores]
        assert frames[0].equals(frames[1])
    assert all_contexts(written, "mid").equals(all_contexts(meant, "mid"))
    files = written.shard_files("mid")
    assert values_of(Tokens.of(written, "mid"), files, "score", OneProcess()) == ["0.0", "7.5"]


def test_a_query_for_zero_finds_both_signs(stores: tuple[FeatureStore, FeatureStore]) -> None:
    result = [store.contexts("mid", 3, 10_000, pl.col("score") == 0)["row"].to_list() for store in stores]
    assert result[0] == result[1] != []
    assert stores[0].contexts("mid", 3, 10_000, pl.col("score").is_null()).height == (
        stores[1].contexts("mid", 3, 10_000, pl.col("score").is_null()).height
    )


def test_files_outside_are_filtered_without_reading_what_is_not_requested(
    stores: tuple[FeatureStore, FeatureStore],
) -> None:
    plan = stores[0].scan_tokens().select("context", "score").explain()
    assert "token_ids" not in plan
