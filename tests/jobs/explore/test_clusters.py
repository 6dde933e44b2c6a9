"""The page of clusters: its rows are those of the stored summaries, and hostile names stay text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from jobs.explore import clusters
from jobs.explore.lake import Explored
from jobs.explore.server import create_app
from jobs.report.strips import visible
from pipeline.evaluation.typed_text import Places
from pipeline.store import FeatureStore
from pipeline.store.records.annotations import annotate
from tests.fixtures.report import HARMFUL_LABEL, add_tables, make_store

NAME = "<b>wars</b>"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    _, store = make_store(tmp_path_factory.mktemp("clusters") / "store")
    add_tables(store)
    annotate(store, "site", 3, name=NAME)
    return store


@pytest.fixture(scope="module")
def client(store: FeatureStore) -> TestClient:
    return TestClient(create_app(Explored(store, Places())), base_url="http://127.0.0.1")


def test_clusters_are_those_of_the_summaries_with_names_of_their_features(
    client: TestClient, store: FeatureStore
) -> None:
    kinds = client.get("/api/sites/site/clusters").json()["kinds"]
    assert [(kind["kind"], kind["title"], kind["n"]) for kind in kinds] == [
        ("feature", "Decoder directions", 3),
        ("context", "Contexts", 1),
    ]
    for kind in kinds:
        summary = store.scan_table("site", f"{kind['kind']}_cluster_summary").collect()
        assert [
            {name: row[name] for name in ("cluster", "size", "cohesion", "share")} for row in kind["clusters"]
        ] == summary.select("cluster", "size", "cohesion", "share").to_dicts()
        features = [[each["feature"] for each in row["features"]] for row in kind["clusters"]]
        assert features == summary["features"].to_list()
    assert [row["name"] for row in kinds[0]["clusters"]] == ["<b>x</b> ·the", "⟨U+202E⟩", ""]
    called = {each["feature"]: each["name"] for row in kinds[0]["clusters"] for each in row["features"]}
    assert called[3] == NAME
    names = store.names("site", list(called))
    assert {feature: name for feature, name in called.items() if feature != 3} == {
        feature: visible(names.name(feature)) for feature in called if feature != 3
    }
    assert kinds[1]["clusters"][0]["majority"] == {"party": [visible(HARMFUL_LABEL), 0.5]}


def test_the_page_lists_them_linked_to_features_and_from_them(client: TestClient) -> None:
    page = client.get("/sites/site/clusters").text
    assert re.findall(r'<tr id="([a-z]+/\d+)">', page) == ["feature/0", "feature/1", "feature/2", "context/0"]
    links = re.findall(r'href="/sites/site/feature#(\d+)"', page)
    assert links == ["0", "3", "1", "4", "2", "5", "1", "2"]
    assert "3 clusters</small>" in page
    assert "1 cluster</small>" in page
    assert NAME not in page
    assert "&lt;b&gt;wars&lt;/b&gt;" in page
    assert HARMFUL_LABEL not in page


def test_of_many_clusters_the_first_are_listed(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "MOST", 2)
    kind = client.get("/api/sites/site/clusters").json()["kinds"][0]
    assert ([row["cluster"] for row in kind["clusters"]], kind["n"]) == ([0, 1], 3)
    assert "3 clusters, the first 2</small>" in client.get("/sites/site/clusters").text


def test_without_clusters_the_page_names_the_command(tmp_path: Path) -> None:
    _, store = make_store(tmp_path / "store")
    client = TestClient(create_app(Explored(store, Places())), base_url="http://127.0.0.1")
    assert client.get("/api/sites/site/clusters").json() == {"kinds": []}
    assert (
        "No clusters yet: run <code>latentlake cluster STORE</code>"
        in client.get("/sites/site/clusters").text
    )
