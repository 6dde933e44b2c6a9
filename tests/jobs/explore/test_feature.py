"""The page of a feature is that of the report, made on request; examples by label are those of the store."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from starlette.testclient import TestClient

from jobs.explore.lake import Explored
from jobs.explore.server import create_app
from jobs.report.page import number
from jobs.report.strips import visible
from jobs.tables.examples import examples as add_examples
from jobs.tables.stats import stats
from pipeline.evaluation.typed_text import Places
from pipeline.store import FeatureStore
from pipeline.store.reading.windows import AFTER, BEFORE
from schemas.run.file import parse_run_file
from tests.fixtures.digits import store_of
from tests.fixtures.report import (
    HOSTILE,
    blocks_of,
    index_of,
    make_report,
    make_store,
    pages_of,
    section_of,
)
from tests.fixtures.runs import extracted, run_content
from tests.fixtures.store import D_SAE, build


def client(store: FeatureStore) -> TestClient:
    return TestClient(create_app(Explored(store, Places())), base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_report(tmp_path_factory.mktemp("feature") / "store")


@pytest.fixture(scope="module")
def pages(made):
    """The page of each feature, as the application gives it."""
    app = client(made[1])
    return [app.get(f"/api/sites/site/features/{feature}").json() for feature in range(D_SAE)]


def with_texts(content, tokens, *, live=False):
    """A page's blocks with tokens as texts in the place of their numbers."""
    kind, *shown = content
    if kind == "strips":
        strips, *fold = shown
        texts = [
            [row[0], [tokens[n] if isinstance(n, int) else n for n in row[1]], *row[2:7]] for row in strips
        ]
        return [kind, texts, *fold]
    if kind in ("table", "tables"):
        (tables,) = shown
        for table in tables if kind == "tables" else [tables]:
            for row in table["rows"]:
                for place, letter in enumerate(table["columns"]):
                    if letter == "t":
                        row[place] = [
                            tokens[n].replace(" ", "·") if isinstance(n, int) else n for n in row[place]
                        ]
    return json.loads(json.dumps([kind, *shown]))


def test_a_page_has_what_the_report_has(made, pages):
    site = made[3] / "sites/site"
    index, written = index_of(site)["tokens"], pages_of(site)
    for feature, page in enumerate(pages):
        report = written[feature]
        assert [page[name] for name in ("before", "after", "most", "toc")] == [
            report[name] for name in ("before", "after", "most", "toc")
        ]
        fires = [
            [tokens[n] for n in some["fires"]] for tokens, some in ((page["tokens"], page), (index, report))
        ]
        assert fires[0] == fires[1]
        assert len(page["sections"]) == len(report["sections"])
        for mine, other in zip(page["sections"], report["sections"], strict=True):
            assert {**mine, "blocks": None} == {**other, "blocks": None}
            assert [with_texts(block, page["tokens"]) for block in mine["blocks"]] == [
                with_texts(block, index) for block in other["blocks"]
            ]


def test_each_example_leads_to_its_context(made, pages):
    tokens = made[0].tokens
    for page in pages:
        strips = [row for rows, _ in blocks_of(page, "strips") for row in rows]
        for *_, where, context, row in strips:
            assert tokens["context"][row] == context
            assert f"context {context}," in where


def test_at_most_eight_statistics_are_shown_at_once(pages):
    for page in pages:
        ((entries, shown),) = blocks_of(page, "facts")
        assert shown == 8
        assert len(entries) > 8
        assert page["sections"][0]["class"] == "facts"


def test_what_a_feature_is_called_goes_before_the_tokens_everywhere(made, pages):
    app = client(made[1])
    neighbour = blocks_of(pages[7], "tables")[-1][0][0]["rows"][0][0]
    name = "<b>war</b>\u202e"
    assert app.post(f"/api/sites/site/annotations/{neighbour}", json={"name": name}).status_code == 200
    try:
        row = blocks_of(app.get("/api/sites/site/features/7").json(), "tables")[-1][0][0]["rows"][0]
        assert row[:2] == [neighbour, ["<b>war</b>⟨U+202E⟩"]]
        own = app.get(f"/api/sites/site/features/{neighbour}").json()
        before = pages[neighbour]
        assert own["fires"][0] == "<b>war</b>⟨U+202E⟩"
        assert [own["tokens"][n] for n in own["fires"][1:]] == [before["tokens"][n] for n in before["fires"]]
        assert own["annotation"] == {"star": False, "name": name, "note": None}
    finally:
        app.post(f"/api/sites/site/annotations/{neighbour}", json={"name": None})


def brute_force(built, feature: int, fits: np.ndarray):
    """The rows at which a feature fires and a condition holds, by |activation|, equal ones by row."""
    values = built.dense["site"][:, feature]
    rows = np.flatnonzero((values != 0) & fits)
    return rows[np.argsort(-np.abs(values[rows]), kind="stable")], values


@pytest.mark.parametrize(
    ("where", "fits"),
    [
        (["party = red"], lambda labels: labels["party"] == "red"),
        (
            ["party != 'red' and year > 1901"],
            lambda labels: (labels["party"] != "red") & (labels["year"] > 1901),
        ),
        (["party=red", "year < 1903"], lambda labels: (labels["party"] == "red") & (labels["year"] < 1903)),
        ([], lambda labels: pl.Series([True] * len(labels))),
    ],
)
def test_examples_by_label_are_the_strongest_rows_that_fit(made, where, fits):
    built, store, _, _ = made
    app = client(store)
    labels = store.describe_rows(np.arange(len(built.tokens), dtype=np.uint64), 0, 0)
    mask = fits(labels).fill_null(value=False).to_numpy()
    context = built.tokens["context"].to_numpy()
    compared = 0
    for feature in range(0, D_SAE, 3):
        rows, values = brute_force(built, feature, mask)
        answer = app.get(
            f"/api/sites/site/features/{feature}/examples", params={"where": where, "k": 5}
        ).json()
        assert answer["active"] == np.count_nonzero(values)
        assert answer["matching"] == len(rows)
        assert [row[-1] for row in answer["strips"]] == rows[:5].tolist()
        assert [row[0] for row in answer["strips"]] == [number(float(values[row])) for row in rows[:5]]
        mean = float(values[rows].astype(np.float64).mean()) if len(rows) else None
        assert answer["mean"] == pytest.approx(mean)
        for strip, row in zip(answer["strips"], rows[:5], strict=True):
            inside = np.flatnonzero(context == context[row])
            window = inside[(inside >= row - BEFORE) & (inside <= row + AFTER)]
            texts = [HOSTILE.get(token, f" w{token}") for token in built.tokens["token"].to_numpy()[window]]
            assert [answer["tokens"][n] for n in strip[1]] == list(map(visible, texts))
            assert strip[2] == np.flatnonzero(values[window]).tolist()
            compared += 1
    assert compared > 5


def test_without_tables_a_page_names_the_commands_and_shows_the_strongest_rows(tmp_path):
    built = build(tmp_path / "store", shards=2)
    store = FeatureStore.open(tmp_path / "store")
    app = client(store)
    refused = app.get("/api/sites/site/features/1")
    assert refused.status_code == 400
    assert "run `latentlake stats`" in refused.json()["error"]
    stats(store, "site")
    (tmp_path / "store/tables/site/examples.parquet").unlink()
    feature = int(np.count_nonzero(built.dense["site"], axis=0).argmax())
    page = app.get(f"/api/sites/site/features/{feature}").json()
    rows, _ = brute_force(built, feature, np.ones(len(built.tokens), bool))
    ((strips, _),) = blocks_of(page, "strips")
    assert [row[-1] for row in strips] == rows[:20].tolist()
    commands = {command for _, command in blocks_of(page, "absent")}
    assert commands == {
        f"latentlake {name}" for name in ("profile", "logits", "coactivation", "cluster", "examples")
    }


def test_a_table_that_is_made_meanwhile_is_shown(tmp_path):
    built, store = make_store(tmp_path / "store")
    app = client(store)
    feature = int(np.count_nonzero(built.dense["site"], axis=0).argmax())
    before = app.get(f"/api/sites/site/features/{feature}").json()
    assert "top_document" not in dict(before["toc"])
    add_examples(store, "site")
    after = app.get(f"/api/sites/site/features/{feature}").json()
    assert {"top_document", "random"} <= dict(after["toc"]).keys()


def test_stale_tables_are_named(tmp_path):
    build(tmp_path / "store", shards=3, commits=2)
    stats(FeatureStore.open(tmp_path / "store"), "site")
    build(tmp_path / "more", shards=3)
    # the third shard is committed after the tables were made
    for path in (tmp_path / "more/passes").rglob("*"):
        place = tmp_path / "store" / path.relative_to(tmp_path / "more")
        if path.is_file() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    page = client(FeatureStore.open(tmp_path / "store")).get("/api/sites/site/features/1").json()
    assert page["stale"] == [["examples", "latentlake stats"], ["features", "latentlake stats"]]


def test_effects_over_the_vocabulary_are_drawn_where_the_table_has_them(made):
    store = made[1]
    table = store.scan_table("site", "logits").collect()
    more = {
        "promoted_tokens": [[8, 3]], "promoted_effects": [[0.75, 0.5]],
        "suppressed_tokens": [[9]], "suppressed_effects": [[-1.0]],
        "effect_low": [-1.0], "effect_high": [0.75], "effect_counts": [[1, 0, 40, 9]],
    }  # fmt: skip
    columns = [pl.Series(name, values * table.height) for name, values in more.items()]
    app = client(store)
    try:
        store.write_table("site", "logits", table.with_columns(columns[:4]))
        blocks = section_of(app.get("/api/sites/site/features/3").json(), "Logits")
        assert [block[0] for block in blocks] == ["heading", "tables", "absent", "heading", "note", "tables"]
        assert blocks[2] == ["absent", "histogram over the vocabulary", "latentlake logits"]
        store.write_table("site", "logits", table.with_columns(columns))
        blocks = section_of(app.get("/api/sites/site/features/3").json(), "Logits")
        assert [block[0] for block in blocks] == [
            "heading",
            "tables",
            "histogram",
            "heading",
            "note",
            "tables",
        ]
        assert [table["caption"][0] for table in blocks[1][1]] == ["Most promoted", "Most suppressed"]
        drawn = blocks[2][1]
        assert [bar[3] for bar in drawn["bars"]] == [
            "-1.00 to -0.562: 1", "-0.562 to -0.125: 0", "-0.125 to 0.312: 40", "0.312 to 0.750: 9",
        ]  # fmt: skip
        assert [bar[4] for bar in drawn["bars"]] == [1, 1, 0, 0]
        assert (drawn["ticks"][0][1], drawn["heights"][-1][1]) == ("-1", "40")
    finally:
        store.write_table("site", "logits", table)


@pytest.mark.parametrize(
    ("path", "code", "sentence"),
    [
        (f"/{D_SAE}", 400, f"feature {D_SAE}"),
        ("/-1", 422, ""),
        ("/x", 422, ""),
        ("/99999999999999999999", 400, "feature 99999999999999999999"),
        ("/1/examples?where=colour%3Dred", 400, "no label 'colour'"),
        ("/1/examples?where=party%3Drod", 400, "the nearest"),
        ("/1/examples?where=(((", 400, "a condition is missing"),
        ("/1/examples?where=" + "(" * 4000, 400, "nested more than"),
        ("/1/examples?k=0", 422, ""),
        ("/1/examples?k=999999", 422, ""),
    ],
)
def test_what_cannot_be_answered_is_a_sentence(made, path, code, sentence):
    answer = client(made[1]).get(f"/api/sites/site/features{path}")
    assert answer.status_code == code
    assert sentence in answer.json()["error"]


def test_a_mean_of_a_context_fires_on_none_of_its_tokens(tmp_path):
    content = run_content(tmp_path)
    content["sites"][0]["pooling"] = "mean"
    tokens = {**content["tokens"], "contexts": "document", "context_size": 130}
    store = extracted(parse_run_file(content | {"tokens": tokens}, "run.yaml"))
    feature = store.scan_features("mid").sort("n_active").collect()["feature"][-1]
    app = client(store)
    page = app.get(f"/api/sites/mid/features/{feature}").json()
    answer = app.get(f"/api/sites/mid/features/{feature}/examples?where=year > 1905").json()
    strips = [*(row for rows, _ in blocks_of(page, "strips") for row in rows), *answer["strips"]]
    assert page["fires"] == []
    assert len(strips) > 5
    assert all(row[2:5] == [[], [], -1] and "position" not in row[6] for row in strips)
    rows, values = store.rows_of("mid", feature)
    years = store.describe_rows(rows, 0, 0)["year"].to_numpy()
    assert answer["matching"] == np.count_nonzero(years > 1905)
    assert answer["mean"] == pytest.approx(float(values[years > 1905].astype(np.float64).mean()))


@pytest.mark.slow
def test_features_of_images_have_pages_too(tmp_path):
    store = store_of(tmp_path)
    site = next(name for name, info in store.sites.items() if info.has_sae)
    stats(store, site)
    app = client(store)
    page = app.get(f"/api/sites/{site}/features/1").json()
    assert page["fires"] == []
    answer = app.get(f"/api/sites/{site}/features/1/examples?where=class=across").json()
    rows, _ = store.rows_of(site, 1)
    labels = store.describe_rows(rows, 0, 0)["class"]
    assert (answer["active"], answer["matching"]) == (len(rows), (labels == "across").sum())
    assert all(row[6].startswith("across") for row in answer["strips"])
    Explored(store, Places()).read_ahead()


def test_a_page_names_the_first_neighbour_that_it_lists_for_compare(made, pages):
    tables = made[2]
    by_jaccard = tables["neighbours"].filter(by="jaccard", rank=0)
    expected = dict(by_jaccard.select("feature", "neighbour").iter_rows())
    assert {page["feature"]: page["neighbour"] for page in pages} == expected


def test_without_neighbours_there_is_none(tmp_path):
    app = client(make_store(tmp_path / "store")[1])
    assert app.get("/api/sites/site/features/7").json()["neighbour"] is None


@pytest.mark.parametrize("steers", [True, False])
def test_a_page_leads_to_steer_where_the_model_can_write(tmp_path, monkeypatch, steers):
    monkeypatch.setattr("jobs.explore.feature.refusal", lambda store, site: "" if steers else "an encoder")
    app = client(make_store(tmp_path / "store")[1])
    assert ("data-steers" in app.get("/sites/site/feature").text) == steers
