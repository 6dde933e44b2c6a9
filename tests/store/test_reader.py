"""An open store answers as the dense matrix would, and says what it lacks in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.statistics.l0 import l0_counts
from pipeline.store import FeatureStore
from pipeline.store.feature_store import strongest
from pipeline.store.records.site import write_site_weights
from pipeline.store.records.tables import StaleTableWarning
from pipeline.tokens.lake_rule import RESERVED
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import FORMAT_VERSION
from schemas.values import Totals
from tests.fixtures.store import (
    D_SAE,
    Built,
    build,
    commit_shard,
    make_plan,
    planned_site,
    random_features,
)
from tests.fixtures.tokens import CONTEXT_SIZE, feature_table


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("store"), sites=("site", "other"))


@pytest.fixture(scope="module")
def store(built: Built) -> FeatureStore:
    return FeatureStore.open(built.layout.root)


NEWER = FORMAT_VERSION + 1


def brute_force(built: Built, site: str, feature: int) -> pl.DataFrame:
    """All firing rows of a feature, strongest first."""
    values = built.dense[site][:, feature]
    frame = built.tokens.with_columns(activation=pl.Series(values)).filter(pl.col("activation") != 0)
    return frame.with_columns(size=pl.col("activation").abs()).sort(
        "size", "row", descending=[True, False], maintain_order=True
    )


def test_the_records_are_those_that_were_written(store: FeatureStore, built: Built) -> None:
    assert store.lake == built.lake
    assert store.shards == built.shards == store.committed("site")
    assert list(store.sites) == ["site", "other"]
    assert (store.sites["site"].d_sae, store.sites["site"].pass_name) == (D_SAE, "p")
    assert list(store.receipts("site")) == ["000000", "000001", "000002"]
    counted = built.tokens.filter(pl.col("token") != 0)
    assert store.totals("site") == Totals(
        built.tokens.height, counted.height, counted["context"].n_unique(), counted["document"].n_unique()
    )


def test_csr_and_postings_of_a_shard_are_its_part_of_the_dense_matrix(
    store: FeatureStore, built: Built
) -> None:
    for record in built.shards:
        dense = built.dense["other"][record.row_start : record.row_start + record.rows]
        assert np.array_equal(store.csr("other", record.name).toarray(), dense)
        postings = store.postings("other", record.name)
        feature, row = np.nonzero(dense.T)
        assert np.repeat(postings.features, np.diff(postings.offsets)).tolist() == feature.tolist()
        assert postings.rows.tolist() == row.tolist()
        assert postings.values.tolist() == dense[row, feature].tolist()


def test_scanned_activations_carry_context_and_position(store: FeatureStore, built: Built) -> None:
    frame = store.scan_activations("site").collect()
    assert dict(frame.schema) == {
        "feature": pl.UInt32,
        "row": pl.UInt64,
        "context": pl.UInt64,
        "position": pl.UInt32,
        "activation": pl.Float16,
    }
    dense = built.dense["site"]
    assert frame.height == np.count_nonzero(dense)
    rows = frame["row"].cast(pl.Int64).to_numpy()
    assert np.array_equal(frame["activation"].cast(pl.Float32).to_numpy(), dense[rows, frame["feature"]])
    for name in ("context", "position"):
        assert frame[name].to_list() == built.tokens[name].gather(rows).to_list()


def test_a_filter_on_feature_reaches_the_files(store: FeatureStore, built: Built) -> None:
    scan = store.scan_activations("site").filter(pl.col("feature") == 7)
    assert 'SELECTION: col("feature") == 7' in scan.explain()
    assert scan.select(pl.len()).collect().item() == np.count_nonzero(built.dense["site"][:, 7])


def test_scanned_tokens_are_numbered_through_the_lake(store: FeatureStore, built: Built) -> None:
    frame = store.scan_tokens().collect()
    first = built.tokens.group_by("context", maintain_order=True).agg(
        pl.col("row").first(), pl.col("token"), pl.col("token").ne(0).alias("counted")
    )
    assert frame["context"].to_list() == first["context"].to_list()
    assert frame["row_start"].to_list() == first["row"].to_list()
    assert frame["token_ids"].to_list() == first["token"].to_list()
    assert frame["counted"].to_list() == first["counted"].to_list()
    shards = [record.name for record in built.shards for _ in range(record.contexts)]
    assert frame["shard"].to_list() == shards
    assert set(built.lake.label_columns) <= set(frame.columns)


@pytest.mark.parametrize("k", [1, 3, 1000])
def test_the_strongest_contexts_equal_brute_force(store: FeatureStore, built: Built, k: int) -> None:
    for feature in range(D_SAE):
        result = store.contexts("site", feature, k)
        expected = brute_force(built, "site", feature).head(k)
        names = ["row", "activation", "context", "position", "document", "document_offset", "year", "party"]
        assert result.select(names).rows() == expected.select(names).rows()
        for row in result.iter_rows(named=True):
            context = built.tokens.filter(pl.col("context") == row["context"])
            assert row["token_ids"] == context["token"].to_list()
            assert row["first_position"] == 0
            assert row["shard"] in store.receipts("site")


@pytest.mark.parametrize("where", [None, pl.col("year") > 1901])
def test_one_row_of_each_document_is_its_strongest(
    store: FeatureStore, built: Built, where: pl.Expr | None
) -> None:
    for feature in range(D_SAE):
        every = brute_force(built, "site", feature)
        every = every if where is None else every.filter(where)
        expected = every.unique("document", keep="first", maintain_order=True).head(5)
        result = store.contexts("site", feature, 5, where, one_per_document=True)
        assert result["row"].to_list() == expected["row"].to_list()
        assert result["activation"].to_list() == expected["activation"].to_list()


def test_any_rows_are_described_as_the_strongest_are(store: FeatureStore) -> None:
    result = store.contexts("site", 3, 9, before=2, after=1)
    described = store.describe_rows(result["row"].to_numpy(), before=2, after=1)
    assert described.equals(result.drop("activation"))
    assert store.describe_rows(np.empty(0, np.uint64)).schema == described.schema


def test_a_condition_on_labels_keeps_the_strongest_that_fulfil_it(store: FeatureStore, built: Built) -> None:
    where = (pl.col("party") == "red") & (pl.col("year") > 1901) & (pl.col("activation") > 0)
    for feature in (1, 3, 8, 9):
        expected = brute_force(built, "site", feature).filter(where).head(4)
        assert store.contexts("site", feature, 4, where=where)["row"].to_list() == expected["row"].to_list()


def test_windows_are_clipped_at_the_ends_of_the_context(store: FeatureStore, built: Built) -> None:
    result = store.contexts("site", 3, 1000, before=2, after=1)
    seen = set()
    for row in result.iter_rows(named=True):
        first = row["first_position"]
        assert first == max(0, row["position"] - 2)
        context = built.tokens.filter(pl.col("context") == row["context"])["token"].to_list()
        assert row["token_ids"] == context[first : row["position"] + 2]
        seen.add((row["position"] == 1, row["position"] == CONTEXT_SIZE - 1))
    assert seen == {(False, False), (True, False), (False, True)}


def test_no_label_can_be_called_as_a_column_that_it_would_stand_next_to(store: FeatureStore) -> None:
    for frame in (store.scan_tokens().collect(), store.contexts("site", 3, 1)):
        own = set(frame.columns) - set(store.lake.label_columns)
        assert own > {"context", "shard", "token_ids"}
        assert own <= set(RESERVED)
        segments = frame.schema.get("segments")
        inner = {field.name for field in segments.inner.fields} if segments is not None else set()
        assert inner - set(store.lake.label_columns) <= set(RESERVED)


def test_features_that_are_not_there_and_unknown_names_are_sentences(store: FeatureStore) -> None:
    for feature in (-1, D_SAE):
        with pytest.raises(InputError, match=rf"feature {feature} is not in site 'site'.* 0 to {D_SAE - 1}"):
            store.contexts("site", feature)
    with pytest.raises(InputError, match="no site 'l9'; it has site, other"):
        store.contexts("l9", 0)
    with pytest.raises(InputError, match=r"where names colour; known: row, activation, .*party"):
        store.contexts("site", 1, where=pl.col("colour") == 1)
    with pytest.raises(InputError, match=r"no shard '9'"):
        store.csr("site", "9")


def test_a_feature_that_never_fires_has_no_contexts(store: FeatureStore) -> None:
    result = store.contexts("site", 0)
    assert result.height == 0
    assert result.columns[:2] == ["row", "activation"]


@pytest.mark.parametrize("layout", ["token_major", "feature_major"])
def test_a_pass_with_one_layout_answers_the_same(tmp_path: Path, layout: str) -> None:
    built = build(tmp_path, layouts=(layout,), shards=2)
    store = FeatureStore.open(tmp_path)
    assert store.contexts("site", 3, 5)["row"].to_list() == brute_force(built, "site", 3)["row"][:5].to_list()
    assert np.array_equal(store.csr("site", "000001").toarray(), built.dense["site"][built.shards[0].rows :])
    assert store.postings("site", "000000").nnz == np.count_nonzero(
        built.dense["site"][: built.shards[0].rows]
    )
    if layout == "token_major":
        with pytest.raises(InputError, match=r"no postings.parquet: .*layouts \['token_major'\]"):
            store.scan_activations("site")


def test_a_store_without_commits_is_empty_not_broken(tmp_path: Path) -> None:
    build(tmp_path, commits=0)
    store = FeatureStore.open(tmp_path)
    assert store.contexts("site", 3).height == 0
    assert store.scan_activations("site").collect().columns == [
        "feature",
        "row",
        "context",
        "position",
        "activation",
    ]
    assert store.totals("site") == Totals(0, 0, 0, 0)
    assert store.fold_partials("site").height == 0
    assert store.verify().problems == []


def test_only_committed_shards_are_seen(tmp_path: Path) -> None:
    built = build(tmp_path, commits=2)
    stray = built.layout.attempt("p", "000002", "stray") / "site"
    stray.mkdir(parents=True)
    (stray / "postings.parquet").write_bytes(b"half")
    store = FeatureStore.open(tmp_path)
    assert [record.name for record in store.committed("site")] == ["000000", "000001"]
    assert store.scan_activations("site").collect().height == np.count_nonzero(built.dense["site"])
    with pytest.raises(InputError, match="'000002' of site 'site' is not committed"):
        store.csr("site", "000002")


def test_partials_and_row_counts_fold_to_those_of_the_whole(store: FeatureStore, built: Built) -> None:
    dense = built.dense["site"]
    state = store.fold_partials("site")
    fired = np.flatnonzero(dense.any(axis=0))
    assert state["feature"].to_list() == fired.tolist()
    assert state["n_active"].to_list() == np.count_nonzero(dense, axis=0)[fired].tolist()
    indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(dense, axis=1))])
    counted = (built.tokens["token"] != 0).to_numpy()
    assert store.fold_row_counts("site").equals(l0_counts(indptr, counted))


def test_tables_are_written_whole_and_staleness_is_said(tmp_path: Path) -> None:
    built = build(tmp_path, commits=2)
    store = FeatureStore.open(tmp_path)
    with pytest.raises(InputError, match=r"table 'features' .*does not exist .*: run `latentlake stats`"):
        store.scan_features("site")
    assert not store.has_table("site", "features")
    table = feature_table(
        store.fold_partials("site"), store.totals("site"), D_SAE, store.fold_row_counts("site")
    )
    path = store.write_table("site", "features", table)
    first = path.read_bytes()
    store.write_table("site", "features", table)
    assert path.read_bytes() == first
    assert store.scan_features("site").collect().equals(table)
    assert pl.read_parquet(path).equals(table)
    assert store.tables("site") == ["features"]
    assert not store.is_stale("site", "features")
    record = built.shards[2]
    frame = built.tokens.filter(pl.col("row") >= record.row_start)
    features = random_features(np.random.default_rng(9), (frame["token"] != 0).to_numpy())
    commit_shard(built.layout, built.plan, record, frame, {"site": features})
    newer = FeatureStore.open(tmp_path)
    assert newer.is_stale("site", "features")
    with pytest.warns(StaleTableWarning, match=r"features.parquet is stale"):
        newer.scan_features("site")


def test_opening_a_store_imports_no_heavy_library() -> None:
    code = "import sys, pipeline.store; print({'torch', 'ray', 'zarr', 'transformers'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def test_no_store_and_newer_formats_stop_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a store"):
        FeatureStore.open(tmp_path / "nothing")
    for name in ("lake.json", "corpus/0.json", "passes/p/plan.json"):
        root = tmp_path / name.replace("/", "_")
        build(root, shards=1)
        edit_json(root / name, format_version=NEWER)
        with pytest.raises(InputError, match=rf"{name} has format version {NEWER}, .*update latentlake"):
            FeatureStore.open(root)


def test_a_table_of_a_newer_format_stops(tmp_path: Path) -> None:
    build(tmp_path, shards=1)
    path = Layout(tmp_path).table("site", "features")
    path.parent.mkdir(parents=True)
    pl.DataFrame({"feature": [0]}).write_parquet(path, metadata={"latentlake.format_version": str(NEWER)})
    with pytest.raises(InputError, match=f"features.parquet has format version {NEWER}"):
        FeatureStore.open(tmp_path).scan_features("site")


def test_two_passes_with_one_site_name_are_refused(tmp_path: Path) -> None:
    built = build(tmp_path, shards=1)
    plan = make_plan([planned_site()], ("token_major",), "float16", pass_name="q")
    path = built.layout.plan("q")
    path.parent.mkdir(parents=True)
    path.write_bytes(plan.to_json())
    with pytest.raises(InputError, match="passes 'p' and 'q' both have a site 'site'"):
        FeatureStore.open(tmp_path)


def test_a_damaged_file_is_named_by_a_query(tmp_path: Path) -> None:
    build(tmp_path, shards=1)
    path = FeatureStore.open(tmp_path).object_path("site", "000000", "postings.parquet")
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=r"postings.parquet is damaged .*latentlake verify"):
        FeatureStore.open(tmp_path).contexts("site", 3)
    path.unlink()
    with pytest.raises(InputError, match=r"postings.parquet is missing"):
        FeatureStore.open(tmp_path).contexts("site", 3)


def test_ties_of_the_strongest_go_to_the_lower_place() -> None:
    values = np.array([1, -3, 3, 2, -3, 3], dtype=np.float32)
    assert strongest(values, 3).tolist() == [1, 2, 4]
    assert strongest(values, 10).tolist() == [1, 2, 4, 5, 3, 0]
    assert strongest(values, 0).tolist() == []


def test_site_weights_are_kept_once_with_their_metadata(tmp_path: Path) -> None:
    build(tmp_path, shards=1)
    layout, rng = Layout(tmp_path), np.random.default_rng(0)
    weights = {
        "W_enc": rng.normal(size=(4, D_SAE)).astype(np.float32),
        "W_dec": rng.normal(size=(D_SAE, 4)).astype(np.float32),
        "b_enc": np.zeros(D_SAE, np.float32),
    }
    store = FeatureStore.open(tmp_path)
    with pytest.raises(InputError, match=r"site.zarr does not exist"):
        store.site_weights("site")
    write_site_weights(layout, "p", planned_site(), weights, {"hook_name": "hook", "k": 3})
    write_site_weights(layout, "p", planned_site(), {}, {})
    result, metadata = store.site_weights("site")
    assert metadata == {"hook_name": "hook", "k": 3}
    assert set(result) == set(weights)
    for name, values in weights.items():
        assert np.array_equal(result[name], values)
    assert [path.name for path in layout.site("p", "site").parent.iterdir()] == ["site.zarr"]


@pytest.mark.parametrize("layouts", [("token_major",), ("feature_major",), ("token_major", "feature_major")])
def test_a_context_has_its_tokens_and_what_fires_in_it(tmp_path: Path, layouts: tuple[str, ...]) -> None:
    built = build(tmp_path, layouts=layouts)
    store = FeatureStore.open(tmp_path)
    for (context,), rows in built.tokens.group_by("context", maintain_order=True):
        first, ids = store.context_tokens(context)
        assert (first, ids.tolist()) == (rows["row"][0], rows["token"].to_list())
        dense = store.context_activations("site", context).toarray()
        np.testing.assert_array_equal(dense, built.dense["site"][first : first + len(ids)])
    with pytest.raises(
        InputError, match=f"context {context + 1} is not in the lake: its contexts are 0 to {context}"
    ):
        store.context_tokens(context + 1)


def test_a_context_that_is_not_committed_yet_is_said(tmp_path: Path) -> None:
    store = FeatureStore.open(build(tmp_path, shards=2, commits=1).layout.root)
    last = len(store.scan_tokens().collect()) - 1
    with pytest.raises(
        InputError, match=f"context {last} is in a shard that site 'site' has not committed yet"
    ):
        store.context_activations("site", last)
