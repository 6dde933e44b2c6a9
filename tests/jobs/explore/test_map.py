"""The map that the application draws is the stored table."""

from __future__ import annotations

import base64

import numpy as np
import polars as pl
import pytest
from starlette.testclient import TestClient

from jobs.explore.lake import Explored
from jobs.explore.server import create_app
from jobs.tables.clusters.tables import FEATURE_MAP
from pipeline.evaluation.typed_text import Places
from pipeline.store import FeatureStore
from tests.fixtures.store import build

ROWS = [
    {
        "feature": 3,
        "x": 0.5,
        "y": -1.25,
        "n_active": 7,
        "cluster": 0,
        "name": "<b>\u202ewar",
        "by": "coactivation",
    },
    {
        "feature": 9,
        "x": 2.0,
        "y": 4.0,
        "n_active": (1 << 33) + 1,
        "cluster": 2,
        "name": None,
        "by": "coactivation",
    },
    {"feature": 20, "x": -3.0, "y": 0.0, "n_active": 1, "cluster": None, "name": None, "by": "coactivation"},
]


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return FeatureStore.open(build(tmp_path, shards=1).layout.root)


def client(store: FeatureStore) -> TestClient:
    return TestClient(create_app(Explored(store, Places())), base_url="http://127.0.0.1")


def numbers(text: str, dtype: str) -> list[float]:
    return np.frombuffer(base64.b64decode(text), dtype).tolist()


def test_each_feature_has_its_place_rows_and_cluster(store):
    table = pl.DataFrame(ROWS, schema_overrides={"cluster": pl.UInt32}).cast(FEATURE_MAP)
    store.write_table("site", "feature_map", table)
    answer = client(store).get("/api/sites/site/map").json()
    assert answer["by"] == "Co-activation"
    assert numbers(answer["feature"], "<u4") == [3, 9, 20]
    assert numbers(answer["x"], "<f4") == [0.5, 2, -3]
    assert numbers(answer["y"], "<f4") == [-1.25, 4, 0]
    assert numbers(answer["n_active"], "<f8") == [7, (1 << 33) + 1, 1]
    assert numbers(answer["cluster"], "<i4") == [0, 2, -1]
    assert answer["names"] == {"0": "<b>⟨U+202E⟩war"}


def test_an_empty_map_is_answered(store):
    store.write_table("site", "feature_map", pl.DataFrame(schema=FEATURE_MAP))
    answer = client(store).get("/api/sites/site/map").json()
    assert answer == {"by": "", "names": {}} | dict.fromkeys(("feature", "x", "y", "n_active", "cluster"), "")


def test_without_the_table_its_command_is_named(store):
    answer = client(store).get("/api/sites/site/map")
    assert answer.status_code == 400
    assert "latentlake cluster" in answer.json()["error"]
