"""A small store of each format version stays in tests/data and opens for ever."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipeline.store import FeatureStore

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module", params=sorted(path.name for path in DATA.glob("store-v*")))
def store(request):
    return FeatureStore.open(DATA / request.param)


def test_every_checksum_and_statistic_still_agrees(store):
    report = store.verify()
    assert (report.problems, report.stale) == ([], [])
    assert report.nonzeros == 4664


def test_the_feature_table_reads_as_it_did(store):
    row = (
        store.scan_features("mid").filter(feature=3).select("n_active", "counted_rows", "mean_all").collect()
    )
    assert row.row(0)[:2] == (56, 583)
    assert row["mean_all"][0] == pytest.approx(0.195497, abs=5e-7)


def test_queries_give_what_they_gave(store):
    found = store.contexts("mid", 3, 2)
    assert found.select("row", "context", "position", "party").rows() == [
        (553, 35, 2, "Federalist"),
        (4, 0, 4, "Whig"),
    ]
    assert store.scan_activations("mid").select(pl.len()).collect().item() == 4664


def test_there_is_a_store_of_version_1():
    assert (DATA / "store-v1" / "lake.json").exists()
