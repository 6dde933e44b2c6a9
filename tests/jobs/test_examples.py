"""The table `examples` against brute force over the dense activations of a small store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jobs.tables import examples as module
from jobs.tables.examples import examples
from jobs.tables.stats import stats
from jobs.views.feature import show_feature
from pipeline.store import FeatureStore
from pipeline.store.records.site import write_site_weights
from pipeline.store.records.tables import write_table
from pipeline.tasks import Processes
from schemas.errors import InputError
from schemas.tables.tables import EXAMPLES
from schemas.values import SparseFeatures
from tests.fixtures.store import D_SAE, Built, build

SHARDS = 4


@pytest.fixture(
    scope="module", params=[("token_major", "feature_major"), ("token_major",)], ids=["both", "csr"]
)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("store"), shards=SHARDS, documents=8, layouts=request.param)


@pytest.fixture(scope="module")
def made(built: Built) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The table as `stats` writes it, and as `examples` does."""
    store = FeatureStore.open(built.layout.root)
    stats(store, "site")
    before = store.scan_table("site", "examples").collect()
    return before, examples(store, "site", k=3, random=1000)


def test_what_stats_found_stays_and_the_table_is_sorted(made: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    before, table = made
    assert dict(table.schema) == EXAMPLES
    assert set(table["kind"]) == {"top", "top_document", "quantile", "random"}
    assert table.filter(kind="top").equals(before.filter(kind="top"))
    assert table.equals(table.sort("feature", "kind", "interval", "rank"))


def test_one_row_of_each_document_is_its_strongest(
    built: Built, made: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    result = made[1].filter(kind="top_document")
    for feature in range(D_SAE):
        values = built.dense["site"][:, feature]
        rows = built.tokens.with_columns(value=pl.Series(values)).filter(pl.col("value") != 0)
        best = rows.sort(pl.col("value").abs(), "row", descending=[True, False])
        best = best.unique("document", keep="first", maintain_order=True).head(3)
        mine = result.filter(feature=feature)
        assert mine["row"].to_list() == best["row"].to_list()
        assert mine["activation"].to_list() == best["value"].to_list()
        assert mine["rank"].to_list() == list(range(best.height))


def test_samples_stand_in_the_tenth_that_sorting_all_active_rows_gives_them(
    built: Built, made: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    result, moved = made[1].filter(kind="quantile"), 0
    for feature in range(D_SAE):
        values, mine = built.dense["site"][:, feature], result.filter(feature=feature)
        rows = np.flatnonzero(values)
        order = rows[np.lexsort((rows, values[rows]))].tolist()
        tenths = [int((order.index(row) + 0.5) * 10 / len(order)) for row in mine["row"].to_list()]
        assert mine["interval"].to_list() == tenths
        assert mine["activation"].to_list() == values[mine["row"].to_numpy().astype(np.int64)].tolist()
        if tenths:  # NumPy's quantiles are the borders
            borders = [np.quantile(values[rows], n / 10, method="inverted_cdf") for n in range(11)]
            low, high = (
                np.array(borders)[mine["interval"]],
                np.array(borders)[mine["interval"].to_numpy() + 1],
            )
            assert ((mine["activation"].to_numpy() >= low) & (mine["activation"].to_numpy() <= high)).all()
        for _, some in mine.group_by("interval"):
            assert some["rank"].to_list() == list(range(some.height))
            assert some.height <= 2
        moved += mine.height
    assert moved > 200


def test_random_rows_are_counted_and_of_all_contexts_without_the_feature(
    built: Built, made: tuple[pl.DataFrame, pl.DataFrame]
) -> None:
    tokens = built.tokens.filter(pl.col("token") != 0)
    for feature in range(D_SAE):
        fires = built.tokens.filter(pl.Series(built.dense["site"][:, feature] != 0))["context"].unique()
        silent = set(tokens["context"].to_list()) - set(fires.to_list())
        mine = made[1].filter(kind="random", feature=feature).join(tokens, on="row")  # rows that are counted
        assert mine.height == made[1].filter(kind="random", feature=feature).height
        assert sorted(mine["context"]) == (sorted(silent) if len(fires) else [])
        assert not mine["activation"].to_numpy().any()


def test_the_store_still_verifies(built: Built, made: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    write_site_weights(built.layout, "p", built.plan.sites[0], {"W_dec": np.eye(3, dtype=np.float32)}, {})
    report = FeatureStore.open(built.layout.root).verify()
    assert (report.problems, report.stale) == ([], [])


def test_no_bit_depends_on_ranges(
    built: Built, made: tuple[pl.DataFrame, pl.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RANGE_BYTES", 1)
    monkeypatch.setattr(module, "_RANGE_FEATURES", 16)
    store = FeatureStore.open(built.layout.root)
    if "feature_major" in store.site("site").layouts:
        assert len(module._ranges(store, "site")) == 3
    assert examples(store, "site", k=3, random=1000).equals(made[1])


@pytest.mark.slow
def test_no_bit_depends_on_workers(built: Built, made: tuple[pl.DataFrame, pl.DataFrame]) -> None:
    store = FeatureStore.open(built.layout.root)
    with Processes(2) as tasks:
        assert examples(store, "site", tasks, k=3, random=1000).equals(made[1])


def test_positions_that_the_site_does_not_read_are_no_examples(tmp_path: Path) -> None:
    built = build(tmp_path, shards=2)
    path = built.layout.plan("p")
    site = built.plan.sites[0].model_copy(update={"positions": (4, 8)})
    path.write_bytes(built.plan.model_copy(update={"sites": (site,)}).to_json())
    store = FeatureStore.open(tmp_path)
    table = pl.DataFrame(schema=EXAMPLES)
    store.write_table("site", "examples", table)
    rows = examples(store, "site").filter(kind="random")["row"].to_numpy()
    assert len(rows)
    assert (built.tokens["position"].gather(rows.astype(np.int64)).to_numpy() >= 4).all()


def test_that_nothing_fires_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(rng: np.random.Generator, stored: np.ndarray) -> SparseFeatures:
        empty = np.zeros(0, np.int32)
        return SparseFeatures(np.zeros(len(stored) + 1, np.int64), empty, empty.astype(np.float32))

    monkeypatch.setattr("tests.fixtures.store.random_features", nothing)
    store = FeatureStore.open(build(tmp_path, shards=1).layout.root)
    stats(store, "site")
    assert examples(store, "site").is_empty()
    assert "examples site: none, because no feature fires (" in " ".join(capsys.readouterr().out.split())
    show_feature(store, "site", 3)
    assert "examples of kind" not in capsys.readouterr().out


def test_it_wants_the_table_of_stats_and_a_fresh_one(tmp_path: Path) -> None:
    built = build(tmp_path, shards=2, commits=1)
    store = FeatureStore.open(tmp_path)
    with pytest.raises(InputError, match="run `latentlake stats`"):
        examples(store, "site")
    stats(store, "site")
    write_table(built.layout, "site", "examples", store.scan_table("site", "examples").collect(), "older")
    with pytest.raises(InputError, match="stale: run `latentlake stats` first"):
        examples(FeatureStore.open(tmp_path), "site")
