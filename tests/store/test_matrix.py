"""Sparse matrices of activations, of rows and of pooled groups, against dense arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from jobs.lake.compact import compact
from pipeline.store import FeatureStore
from pipeline.store.reading import matrix as module
from pipeline.store.reading.matrix import activation_matrix, pooled_matrix
from schemas.errors import InputError
from tests.fixtures.runs import extracted, run_file, write_corpus
from tests.fixtures.store import D_SAE, Built, build
from tests.kit import write_tiny_tokenizer


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("store"), shards=3, documents=7)


@pytest.fixture
def store(built: Built) -> FeatureStore:
    return FeatureStore.open(built.layout.root)


def strongest(values: np.ndarray) -> np.ndarray:
    """The value of largest magnitude of each column; of -x and x the x."""
    high, low = values.max(axis=0), values.min(axis=0)
    return np.where(-low > high, low, high)


POOLS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "max": strongest,
    "mean": lambda values: values.mean(axis=0),
    "sum": lambda values: values.sum(axis=0),
    "last": lambda values: values[-1],
}


def groups(built: Built, column: str, where: pl.Expr | None = None) -> dict[int, list[int]]:
    """Counted rows of each group, by its number."""
    rows = built.tokens.filter(pl.col("token") != 0)
    rows = rows if where is None else rows.filter(where)
    parts = rows.group_by(column, maintain_order=True).agg(pl.col("row").alias("rows"))
    return dict(parts.select(column, "rows").iter_rows())


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("rows", ["document", "context", "token"])
def test_groups_are_pooled_as_dense_ones(built: Built, store: FeatureStore, rows: Any, pool: Any) -> None:
    matrix = pooled_matrix(store, "site", rows, pool)
    dense = built.dense["site"].astype(np.float64)
    column = "row" if rows == "token" else rows
    parts = groups(built, column)
    assert matrix.rows[column].to_list() == list(parts)
    assert matrix.rows["counted_rows"].to_list() == [len(part) for part in parts.values()]
    expected = np.array([POOLS[pool](dense[part]) for part in parts.values()], np.float32)
    np.testing.assert_array_equal(matrix.values.toarray(), expected)
    assert matrix.values.dtype == np.float32
    assert matrix.features.tolist() == list(range(D_SAE))


def test_some_features_of_documents_that_fit(built: Built, store: FeatureStore) -> None:
    where = pl.col("year") > 1903
    matrix = pooled_matrix(store, "site", "document", "sum", [7, 3, 7], where)
    parts = groups(built, "document", where)
    assert 0 < len(parts) < built.tokens["document"].n_unique()
    expected = [
        built.dense["site"][part].astype(np.float64).sum(axis=0)[[7, 3, 7]] for part in parts.values()
    ]
    np.testing.assert_array_equal(matrix.values.toarray(), np.array(expected, np.float32))
    assert matrix.features.tolist() == [7, 3, 7]
    labels = built.tokens.unique("document", keep="first").sort("document").filter(where)
    counted = labels.filter(pl.col("document").is_in(list(parts)))
    assert matrix.rows["year"].to_list() == counted["year"].to_list()
    assert matrix.rows["party"].to_list() == counted["party"].to_list()
    counted_rows = [len(part) for part in parts.values()]
    assert matrix.rows["counted_rows"].to_list() == counted_rows
    as_text = pooled_matrix(store, "site", "document", "sum", [7, 3, 7], "year > 1903")
    assert (as_text.values != matrix.values).nnz == 0


def test_a_context_has_only_the_rows_of_documents_that_fit(built: Built, store: FeatureStore) -> None:
    mixed = built.tokens.filter(pl.col("token") != 0).group_by("context").agg(pl.col("document").n_unique())
    assert (mixed["document"] > 1).any()
    where = pl.col("year") % 2 == 0
    matrix = pooled_matrix(store, "site", "context", "mean", where=where)
    parts = groups(built, "context", where)
    dense = built.dense["site"].astype(np.float64)
    expected = np.array([dense[part].mean(axis=0) for part in parts.values()], np.float32)
    np.testing.assert_array_equal(matrix.values.toarray(), expected)


def test_groups_of_a_shard_that_is_not_committed_are_left_out(built: Built, tmp_path: Path) -> None:
    partial = build(tmp_path, shards=3, documents=7, commits=2)
    matrix = pooled_matrix(FeatureStore.open(partial.layout.root), "site")
    whole = pooled_matrix(FeatureStore.open(built.layout.root), "site")
    assert 0 < matrix.rows.height < whole.rows.height
    assert matrix.rows.equals(whole.rows.head(matrix.rows.height))
    np.testing.assert_array_equal(matrix.values.toarray(), whole.values[: matrix.rows.height].toarray())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rows": "shard"}, "rows 'shard' is not one of document, context, token"),
        ({"pool": "median"}, "pool 'median' is not one of last, mean, max, sum"),
        ({"features": [D_SAE]}, f"feature {D_SAE} is not in site 'site'"),
        ({"where": "year > 3000"}, "where year > 3000: no document that fits has a row"),
        ({"where": pl.col("yaer") == 3}, "where names yaer; known labels: "),
        ({"where": pl.col("year") + 1}, "where is not a condition on labels: its values are Int64"),
    ],
)
def test_what_is_not_there_is_refused(store: FeatureStore, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pooled_matrix(store, "site", **given)


@pytest.mark.parametrize("compacted", [False, True])
def test_stored_activations_of_features_of_rows_and_of_both(tmp_path: Path, compacted: bool) -> None:
    built = build(tmp_path, shards=3, documents=4)
    if compacted:
        compact(FeatureStore.open(tmp_path), "site")
    store, dense = FeatureStore.open(tmp_path), built.dense["site"]
    some = activation_matrix(store, "site", [9, 2])
    assert some.format == "csc"
    np.testing.assert_array_equal(some.toarray(), dense[:, [9, 2]])
    np.testing.assert_array_equal(activation_matrix(store, "site").toarray(), dense)
    first = built.shards[1].row_start
    for rows in (range(first - 2, first + 3), range(0), range(len(dense) - 1, len(dense))):
        matrix = activation_matrix(store, "site", rows=rows)
        assert matrix.format == "csr"
        np.testing.assert_array_equal(matrix.toarray(), dense[rows.start : rows.stop])
    both = activation_matrix(store, "site", [1, 0], range(3, 9))
    np.testing.assert_array_equal(both.toarray(), dense[3:9, [1, 0]])
    assert activation_matrix(store, "site", []).shape == (len(dense), 0)


def test_rows_of_a_shard_that_is_not_committed_are_empty(tmp_path: Path) -> None:
    built = build(tmp_path, shards=2, commits=1)
    store, rows = FeatureStore.open(tmp_path), sum(record.rows for record in built.shards)
    for matrix in (activation_matrix(store, "site"), activation_matrix(store, "site", range(D_SAE))):
        assert matrix.shape == (rows, D_SAE)
        np.testing.assert_array_equal(matrix.toarray(), built.dense["site"])


def test_rows_that_are_not_there_and_too_many_activations_are_refused(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = sum(record.rows for record in store.shards)
    for wrong in (range(-1, 2), range(rows + 1), range(0, 4, 2)):
        with pytest.raises(InputError, match=rf"give a range within 0 to {rows}"):
            activation_matrix(store, "site", rows=wrong)
    monkeypatch.setattr(module, "MOST_ACTIVATIONS", 30)
    with pytest.raises(
        InputError, match="takes 30 at most: give features or fewer rows, or read them by scan"
    ):
        activation_matrix(store, "site")
    assert activation_matrix(store, "site", rows=range(2)).shape == (2, D_SAE)
    assert activation_matrix(store, "site", [1]).shape == (rows, 1)


def test_documents_and_the_document_of_each_row(built: Built, store: FeatureStore) -> None:
    rows = np.random.default_rng(0).permutation(built.tokens.height).astype(np.uint64)
    expected = built.tokens["document"].to_numpy()[rows]
    np.testing.assert_array_equal(store.documents_of(rows), expected)
    assert store.documents_of(rows).dtype == np.uint64
    assert store.documents_of(rows[:0]).tolist() == []
    with pytest.raises(
        InputError, match=f"row {len(rows)} is not in the lake: its rows are 0 to {len(rows) - 1}"
    ):
        store.documents_of(np.array([0, len(rows)], np.uint64))
    table = store.documents()
    parts = built.tokens.group_by("document", maintain_order=True)
    expected_table = parts.agg(
        pl.col("row").first(), pl.len(), pl.col("year").first(), pl.col("party").first()
    )
    assert table["document"].to_list() == expected_table["document"].to_list()
    assert table["row"].to_list() == expected_table["row"].to_list()
    assert table["rows"].to_list() == expected_table["len"].to_list()
    assert table["year"].to_list() == expected_table["year"].to_list()
    assert table["party"].to_list() == expected_table["party"].to_list()


def test_labels_may_be_called_as_columns_of_ours(tmp_path: Path) -> None:
    labels = ["rows", "begin", "counted_rows"]
    path = write_corpus(tmp_path / "corpus.parquet")
    columns = [pl.col("year").alias(name) for name in labels]
    pl.read_parquet(path).with_columns(columns).write_parquet(path)
    write_tiny_tokenizer(tmp_path / "tokenizer")
    store = extracted(run_file(tmp_path, corpus={"label_columns": labels}), tables=False)
    years = list(range(1900, 1924))
    documents = store.documents()
    assert [documents[name].to_list() for name in ("rows_label", "begin_label", "counted_rows")] == [
        years
    ] * 3
    assert documents["rows"].sum() == sum(record.rows for record in store.shards)
    rows = pooled_matrix(store, "mid").rows
    assert set(rows.columns) == {"document", "counted_rows", *labels[:2], "counted_rows_label"}
    assert rows["counted_rows_label"].to_list() == years
    assert store.contexts("mid", 3, 1, pl.col("begin_label") == 1905)["rows_label"].to_list() in ([1905], [])
