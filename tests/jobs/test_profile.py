"""`latentlake profile`: its tables, what it says, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.tables.profile import THRESHOLDS, profile
from pipeline.store import FeatureStore
from pipeline.store.records.tables import StaleTableWarning
from schemas.errors import InputError
from tests.fixtures.store import Built, build


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("store"), shards=2)


def test_the_command_writes_the_tables_that_readers_name(built: Built) -> None:
    store = FeatureStore.open(built.layout.root)
    with pytest.raises(InputError, match="run `latentlake profile`"):
        store.scan_table("site", "labels")
    done = CliRunner().invoke(
        app, ["profile", str(built.layout.root), "--threshold", "2", "--threshold", "0.5"]
    )
    assert done.exit_code == 0, done.output
    assert store.tables("site") == [
        *("l0_thresholds", "label_trends", "label_values", "labels", "profile"),
        *("token_counts", "token_features"),
    ]
    table = store.scan_table("site", "profile").collect()
    fired = (built.dense["site"] != 0).any(0).sum()
    assert f"{fired} of {table.height} features fired" in done.output
    assert "by the rule of three over documents" in done.output
    thresholds = store.scan_table("site", "l0_thresholds").collect()
    assert thresholds["threshold"].unique().sort().to_list() == [0.5, 2.0]
    counted = int((built.tokens["token"] != 0).sum())
    assert thresholds.group_by("threshold").agg(pl.col("rows").sum())["rows"].to_list() == [counted] * 2


def test_labels_of_too_few_documents_to_test_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile(FeatureStore.open(build(tmp_path, shards=1, documents=4).layout.root), "site")
    output = capsys.readouterr().out
    assert "no value of label party has enough of the 4 documents for a test: a feature is compared" in output
    assert "it would fire in 5 of the smaller set, which here has at most 2" in output
    assert "no value of label year has enough" in output
    assert "no feature fires in enough documents to test its trend over label year" in output


def test_values_that_are_not_compared_are_said(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    store = FeatureStore.open(built.layout.root)
    profile(store, "site", values=2)
    assert "4 values of label year, those with the fewest rows, are not compared" in capsys.readouterr().out
    assert store.scan_table("site", "l0_thresholds").collect()["threshold"].n_unique() == len(THRESHOLDS)


@pytest.mark.parametrize("threshold", ["-0.5", "nan"])
def test_a_threshold_that_is_none_is_refused(built: Built, threshold: str) -> None:
    with pytest.raises(InputError, match=rf"--threshold {threshold} is not a threshold"):
        profile(FeatureStore.open(built.layout.root), "site", thresholds=[float(threshold)])


def test_a_site_without_a_shard_has_nothing_to_profile(tmp_path: Path) -> None:
    build(tmp_path, shards=1, commits=0)
    with pytest.raises(InputError, match="no committed shard"):
        profile(FeatureStore.open(tmp_path), "site")


def test_a_profile_is_stale_when_shards_came_since(tmp_path: Path) -> None:
    built = build(tmp_path / "store", commits=1)
    profile(FeatureStore.open(built.layout.root), "site")
    more = build(tmp_path / "more", commits=2)
    attempt = built.layout.attempt("p", "000001", "a")
    attempt.parent.mkdir(parents=True)
    more.layout.attempt("p", "000001", "a").rename(attempt)
    more.layout.commit("p", "000001").rename(built.layout.commit("p", "000001"))
    store = FeatureStore.open(built.layout.root)
    with pytest.warns(StaleTableWarning, match="run `latentlake profile`"):
        before = store.scan_table("site", "profile").collect()
    after = profile(store, "site")
    assert not store.is_stale("site", "profile")
    assert after["last_context"].max() > before["last_context"].max()  # type: ignore[operator]
    assert np.isfinite(after["frequency_high"].to_numpy()).all()
