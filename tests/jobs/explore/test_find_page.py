"""The page that finds features: its JSON against the functions of `find`, and the page in a browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from jobs.explore.lake import Explored
from jobs.explore.server import create_app
from jobs.tables.examples import examples
from jobs.tables.profile import profile
from jobs.tables.stats import stats
from pipeline.evaluation.typed_text import Places
from pipeline.store import FeatureStore
from pipeline.store.reading.example_texts import text_pattern
from pipeline.store.reading.finding import by_columns, near_text, on_token, token_ids
from pipeline.store.records.annotations import annotate
from tests.fixtures.browser import errors, find, in_a_browser, served, wait_for
from tests.fixtures.store import build, put_vocabulary

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    built = build(tmp_path_factory.mktemp("store"), shards=3, documents=8)
    put_vocabulary(built.layout, [f" w{token}" if token != 21 else HOSTILE for token in range(50)])
    store = FeatureStore.open(built.layout.root)
    stats(store, "site")
    examples(store, "site")
    profile(store, "site", least=1)
    annotate(store, "site", 5, name=HOSTILE)
    return store


@pytest.fixture(scope="module")
def client(store: FeatureStore) -> TestClient:
    return TestClient(create_app(Explored(store, Places())), base_url="http://127.0.0.1")


def answer(client: TestClient, **query: Any) -> dict[str, Any]:
    got = client.get("/api/sites/site/find", params=query)
    assert got.status_code == 200, got.text
    result: dict[str, Any] = got.json()
    return result


def test_answers_are_those_of_find(client: TestClient, store: FeatureStore) -> None:
    got = answer(client, kind="token", q=" w20", by="recall", n=7)
    table = on_token(store, "site", token_ids(store, " w20"), by="recall")
    assert (got["total"], got["columns"]) == (table.height, table.columns[2:])
    assert [row["feature"] for row in got["rows"]] == table["feature"].head(7).to_list()
    assert [tuple(row["values"]) for row in got["rows"]] == table.head(7).drop("feature", "token_id").rows()
    assert {row["token"] for row in got["rows"]} == {"·w20"}
    got = answer(client, kind="text", q="W20", where="feature < 20")
    table = near_text(store, "site", text_pattern("W20"), ["feature < 20"])
    assert [row["feature"] for row in got["rows"]] == table["feature"].to_list()
    described = store.describe_rows(table["row"].to_numpy(), 12, 8)
    for row, place in zip(got["rows"], described.iter_rows(named=True), strict=True):
        texts = store.token_texts(place["token_ids"])
        at = place["position"] - place["first_position"]
        expected = ["".join(texts[:at]), texts[at], "".join(texts[at + 1 :])]
        assert (row["context"], row["example"]) == (place["context"], expected)
    got = answer(client, kind="where", q="n_active > 3 and frequency < 0.2", by="n_active")
    table = by_columns(store, "site", ["n_active > 3 and frequency < 0.2"], "n_active")
    assert [row["feature"] for row in got["rows"]] == table["feature"].to_list()
    got = answer(client, kind="name", q="IMG")
    assert [(row["feature"], row["name"], row["values"]) for row in got["rows"]] == [
        (5, HOSTILE, ["name", HOSTILE])
    ]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"kind": "where", "q": "n_actve > 3"}, "n_active"),
        ({"kind": "where", "q": "n_active >"}, "where 'n_active >'"),
        ({"kind": "token", "q": "nothing"}, "no token reads nothing"),
        ({"kind": "text", "q": " "}, "text ' ' has no word"),
        ({"kind": "token", "q": " w20", "by": "x"}, "by 'x' is not one of f1"),
        ({"kind": "similar", "q": "many"}, "'many' is no number of a feature"),
        ({"kind": "similar", "q": "99"}, "99"),
        ({"kind": "similar", "q": "9"}, "run `latentlake coactivation`"),
    ],
)
def test_a_bad_question_is_one_sentence(client: TestClient, query: dict[str, str], message: str) -> None:
    got = client.get("/api/sites/site/find", params=query)
    assert got.status_code == 400
    assert message in got.json()["error"]
    assert "--" not in got.json()["error"]


@pytest.fixture(scope="module")
def url(store: FeatureStore) -> Iterator[str]:
    with served(Explored(store, Places())) as url:
        yield url


def listed(browser: Any) -> list[int]:
    """The features in the table, read at once, for it may be drawn anew meanwhile."""
    script = "return [...document.querySelectorAll('#found tbody th a')].map(a => Number(a.textContent))"
    features: list[int] = browser.execute_script(script)
    return features


@in_a_browser
def test_a_question_is_asked_sorted_and_gone_back_to(browser: Any, url: str, store: FeatureStore) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(url)
    browser.get(browser.current_url.replace("/text", "/find"))
    find(browser, "#q")[0].send_keys(" w20", Keys.ENTER)
    by_f1, by_recall = (
        on_token(store, "site", token_ids(store, " w20"), by=by)["feature"].to_list()
        for by in ("f1", "recall")
    )
    wait_for(browser, lambda: listed(browser) == by_f1)
    browser.execute_script(
        "[...document.querySelectorAll('#found thead button')].find(b => b.textContent == 'recall').click()"
    )
    wait_for(browser, lambda: listed(browser) == by_recall)
    browser.back()
    wait_for(browser, lambda: listed(browser) == by_f1)
    assert errors(browser) == []


@in_a_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_tokens_and_names_stay_text_and_the_page_fits(browser: Any, url: str, width: int) -> None:
    browser.set_window_size(width, 900)
    try:
        browser.get(url)
        browser.get(browser.current_url.replace("/text", "/find?kind=name&q=img"))
        wait_for(browser, lambda: find(browser, "#found tbody tr"))
        assert HOSTILE in find(browser, "#found tbody")[0].text
        assert find(browser, "#found img") == []
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert errors(browser) == []
    finally:
        browser.set_window_size(1280, 2400)


@in_a_browser
def test_a_bad_condition_is_explained_on_the_page(browser: Any, url: str) -> None:
    browser.get(url)
    browser.get(browser.current_url.replace("/text", "/find?kind=where&q=n_actve+%3E+3"))
    wait_for(browser, lambda: find(browser, "#status.error"))
    assert "n_active" in find(browser, "#status")[0].text
    errors(browser)  # the browser's own, of the refusal
