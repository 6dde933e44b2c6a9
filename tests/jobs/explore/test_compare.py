"""The page that compares: its JSON against dense activations and tables, and the page in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from starlette.testclient import TestClient

from jobs.explore.lake import Explored
from jobs.explore.server import create_app
from jobs.tables.diff import Side
from jobs.tables.examples import examples
from jobs.tables.match import match
from jobs.tables.stats import stats
from pipeline.evaluation.typed_text import Places
from pipeline.store import FeatureStore
from pipeline.store.reading.comparison import compare_groups
from pipeline.store.records.annotations import annotate
from tests.fixtures.browser import errors, find, in_a_browser, served, wait_for
from tests.fixtures.store import Built, build, decoder, put_decoders, put_vocabulary

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    built = build(tmp_path_factory.mktemp("store"), shards=3, documents=20, sites=("a", "b"))
    put_vocabulary(built.layout, [f" w{token}" if token % 5 else HOSTILE for token in range(50)])
    put_decoders(built.layout, "ab")
    store = FeatureStore.open(built.layout.root)
    for site in "ab":
        stats(store, site)
        examples(store, site)
    match(Side(store, "a"), Side(store, "b"))
    annotate(store, "a", 5, name=HOSTILE)
    return built


@pytest.fixture(scope="module")
def store(built: Built) -> FeatureStore:
    return FeatureStore.open(built.layout.root)


@pytest.fixture(scope="module")
def client(store: FeatureStore) -> TestClient:
    return TestClient(create_app(Explored(store, Places())), base_url="http://127.0.0.1")


def answer(client: TestClient, kind: str, **query: Any) -> dict[str, Any]:
    got = client.get(f"/api/sites/a/compare/{kind}", params=query)
    assert got.status_code == 200, got.text
    result: dict[str, Any] = got.json()
    return result


def test_groups_are_those_of_the_comparison(client: TestClient, store: FeatureStore) -> None:
    got = answer(client, "groups", a="party = 'red'", b="party = 'blue'", n=7)
    compared = compare_groups(store, "a", "party = 'red'", "party = 'blue'")
    assert got["a"] == {"documents": compared.a.documents, "rows": compared.a.rows}
    table = compared.table.drop_nulls("frequency_z")
    order = sorted(table.select("frequency_z", "feature").rows(), key=lambda row: (-abs(row[0]), row[1]))
    assert [row["feature"] for row in got["rows"]] == [feature for _, feature in order[:7]]
    for row in got["rows"]:
        (of,) = table.filter(feature=row["feature"]).select(got["columns"]).rows()
        assert row["values"] == pytest.approx(list(of))
    assert (got["tested"], got["clear"]) == (table.height, int((table["frequency_q"] < 0.05).sum()))


ONE_DOCUMENT = "year = 1900 and party = 'red'"


def test_groups_too_small_for_a_test_say_how_many_documents_it_takes(client: TestClient) -> None:
    got = answer(client, "groups", a=ONE_DOCUMENT, b="party = 'blue'")
    assert (got["tested"], got["clear"], got["rows"]) == (0, 0, [])
    assert (got["a"]["documents"], got["support"]) == (1, 5)


def test_the_progress_of_a_comparison_counts_its_shards(
    client: TestClient, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = {"a": "party = 'red' and year > 0", "b": "party = 'blue'"}

    def progress() -> Any:
        return client.get("/api/sites/a/compare/progress", params=query).json()

    seen: list[Any] = []

    def watched(*arguments: Any, advance: Any) -> Any:
        def look(shards: int) -> None:
            advance(shards)
            seen.append(progress())

        seen.append(progress())
        return compare_groups(*arguments, advance=look)

    monkeypatch.setattr("jobs.explore.compare.compare_groups", watched)
    assert progress() == {"shards": None, "of": 3}
    answer(client, "groups", **query)
    assert seen == [{"shards": shards, "of": 3} for shards in range(4)]
    assert progress() == {"shards": None, "of": 3}


def test_two_features_are_compared_row_by_row(client: TestClient, built: Built, store: FeatureStore) -> None:
    dense = built.dense["a"]
    shared = (dense != 0).T.astype(int) @ (dense != 0)
    np.fill_diagonal(shared, 0)
    a, b = (int(n) for n in np.unravel_index(shared.argmax(), shared.shape))
    got = answer(client, "features", a=a, b=b)
    x, y = dense[:, a] != 0, dense[:, b] != 0
    n_both, n_a, n_b = (int(mask.sum()) for mask in (x & y, x, y))
    assert got["counts"] == {"both": n_both, "only_a": n_a - n_both, "only_b": n_b - n_both}
    assert [row["values"][0] for row in got["features"]] == [n_a, n_b]
    weights = decoder(0)[[a, b]]
    counted = (built.tokens["token"] != 0).to_numpy()
    n = counted.sum()
    expected = {
        "jaccard": n_both / (n_a + n_b - n_both),
        "conditional": n_both / n_a,
        "npmi": np.log(n_both * n / (n_a * n_b)) / -np.log(n_both / n),
        "phi": np.corrcoef(x[counted], y[counted])[0, 1],
        "cosine": weights[0] @ weights[1] / np.linalg.norm(weights[0]) / np.linalg.norm(weights[1]),
    }
    assert got["measures"] == pytest.approx(expected, abs=1e-6)
    rows = np.flatnonzero(x & ~y)
    best = rows[np.argsort(-np.abs(dense[rows, a]), kind="stable")][:5]
    contexts = built.tokens["context"].to_numpy()[best].tolist()
    assert [row["context"] for row in got["examples"]["only_a"]] == contexts
    tokens = store.token_texts(built.tokens["token"].to_numpy()[best].tolist())
    assert [row["example"][1] for row in got["examples"]["only_a"]] == tokens


def test_two_sites_are_compared_by_their_assignment(client: TestClient, store: FeatureStore) -> None:
    got = answer(client, "sites", other="b", n=5)
    table = store.scan_table("a", "matches_b").filter("assigned").collect()
    first = table.sort("cosine", "feature", descending=[True, False], nulls_last=True).head(5)
    assert [(row["feature"], row["match"]) for row in got["rows"]] == first.select("feature", "match").rows()
    assert (got["pairs"], got["by"]) == (table.height, "cosine")
    assert got["median"] == pytest.approx(table["cosine"].median())


@pytest.mark.parametrize(
    ("kind", "query", "message"),
    [
        ("groups", {"a": "party = 'red'", "b": "year > 0"}, "are in both groups"),
        ("groups", {"a": "party = 'red'", "b": "prty = 'blue'"}, "party"),
        ("groups", {"a": "party = 'red'", "b": "party = 'none'"}, "no document has that value"),
        ("features", {"a": 1, "b": 99}, "99"),
        ("features", {"a": 1, "b": 1}, "twice"),
        ("sites", {"other": "a"}, "twice"),
        ("sites", {"other": "c"}, "'c'"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(
    client: TestClient, kind: str, query: dict[str, Any], message: str
) -> None:
    got = client.get(f"/api/sites/a/compare/{kind}", params=query)
    assert got.status_code == 400
    assert message in got.json()["error"]


def test_sites_that_were_not_matched_name_the_command(client: TestClient) -> None:
    got = client.get("/api/sites/b/compare/sites", params={"other": "a"})
    assert got.json()["error"].endswith("run `latentlake match STORE b a`")


@pytest.fixture(scope="module")
def url(store: FeatureStore) -> Iterator[str]:
    with served(Explored(store, Places())) as url:
        yield url


@in_a_browser
def test_each_kind_is_drawn_from_the_address_and_back_returns(browser: Any, url: str) -> None:
    browser.get(url)
    start = browser.current_url.replace("/text", "/compare")
    for query, title in (
        ("?kind=groups&a=party+%3D+red&b=party+%3D+blue", "documents"),
        ("?kind=features&a=5&b=7", "Both fire"),
        ("?kind=sites&b=b", "pairs of the one-to-one assignment"),
    ):
        browser.get(start + query)
        wait_for(browser, lambda title=title: title in find(browser, "#compared")[0].text)
        assert find(browser, "#compared img") == []
    browser.get(start + "?kind=features&a=5&b=7")
    wait_for(browser, lambda: "Both fire" in find(browser, "#compared")[0].text)
    assert HOSTILE in find(browser, "#compared")[0].text
    box = find(browser, "#b")[0]
    box.clear()
    box.send_keys("9")
    find(browser, "#asking button")[0].click()
    wait_for(browser, lambda: "Only 9 fires" in find(browser, "#compared")[0].text)
    browser.back()
    wait_for(browser, lambda: "Only 7 fires" in find(browser, "#compared")[0].text)
    assert errors(browser) == []


@in_a_browser
def test_groups_say_why_there_is_no_test_and_count_one_document_as_one(browser: Any, url: str) -> None:
    query = urlencode({"kind": "groups", "a": ONE_DOCUMENT, "b": "party = 'blue'"})
    browser.get(url)
    browser.get(browser.current_url.replace("/text", f"/compare?{query}"))
    wait_for(browser, lambda: find(browser, "#compared .absent"))
    text = find(browser, "#compared")[0].text
    assert text.startswith("A: 1 document, ")
    assert "at least 5 documents of the smaller group, and A has 1 document. Choose" in text
    assert errors(browser) == []


@in_a_browser
def test_the_shards_that_are_read_are_counted_until_the_answer_comes(
    browser: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = Event()

    def slow(*arguments: Any, advance: Any) -> Any:
        advance(2)
        assert go_on.wait(60)
        return compare_groups(*arguments)

    monkeypatch.setattr("jobs.explore.compare.compare_groups", slow)
    query = urlencode({"kind": "groups", "a": "party = 'red' and year > 1", "b": "party = 'blue'"})
    browser.get(url)
    browser.get(browser.current_url.replace("/text", f"/compare?{query}"))
    wait_for(browser, lambda: find(browser, "#status")[0].text.startswith("Comparing, 2 of 3 shards, "))
    go_on.set()
    wait_for(browser, lambda: "features that could be tested" in find(browser, "#compared")[0].text)
    assert find(browser, "#status")[0].text == ""
    assert errors(browser) == []


@in_a_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_no_wider_than_a_phone(browser: Any, url: str, width: int) -> None:
    browser.set_window_size(width, 900)
    try:
        browser.get(url)
        browser.get(browser.current_url.replace("/text", "/compare?kind=features&a=5&b=7"))
        wait_for(browser, lambda: "Both fire" in find(browser, "#compared")[0].text)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        browser.set_window_size(1280, 2400)
