"""Stars, names and notes: what is kept is what the store has; nothing is written where it may not be."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient

from jobs.explore.guard import Guard
from jobs.explore.lake import Explored
from jobs.explore.server import create_app
from pipeline.evaluation.typed_text import Places
from pipeline.store import FeatureStore
from pipeline.store.records.annotations import annotate, export_edits, read_annotations
from tests.fixtures.report import make_store
from tests.fixtures.store import D_SAE

API = "/api/sites/site/annotations"
EDIT = {"name": "war", "star": True}
TOKEN, PORT = "the-token", 4321


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return make_store(tmp_path / "store")[1]


def client(store: FeatureStore, *, read_only: bool = False) -> TestClient:
    return TestClient(create_app(Explored(store, Places(), read_only)), base_url="http://127.0.0.1")


def edits(store: FeatureStore) -> list[dict]:
    return list(export_edits(store, "site"))


def test_an_edit_is_kept_and_fields_that_are_left_out_stay(store):
    app = client(store)
    assert app.get(f"{API}/3").json() == {"star": False, "name": None, "note": None}
    answer = app.post(f"{API}/3", json={"name": "  war ", "star": True}).json()
    assert answer == {"star": True, "name": "war", "note": None, "called": "war", "source": "annotation"}
    app.post(f"{API}/3", json={"note": "two\nlines", "author": "me"})
    assert app.get(f"{API}/3").json() == {"star": True, "name": "war", "note": "two\nlines"}
    # as the store has it when it is opened anew
    row = read_annotations(FeatureStore.open(store.layout.root), "site").table.row(0, named=True)
    assert (row["feature"], row["star"], row["name"], row["note"]) == (3, True, "war", "two\nlines")
    assert row["author"] == "me"
    assert app.post(f"{API}/3", json={"name": "", "star": False}).json()["name"] is None
    assert app.get(f"{API}/3").json() == {"star": False, "name": None, "note": "two\nlines"}


def test_what_is_so_already_is_not_written_again(store):
    app = client(store)
    for _ in range(3):
        assert app.post(f"{API}/3", json=EDIT).status_code == 200
    app.post(f"{API}/3", json={})
    assert len(edits(store)) == 1


@pytest.mark.parametrize(
    ("feature", "content", "code", "sentence"),
    [
        (3, {"name": "a\nb"}, 400, "control character"),
        (3, {"name": "x" * 201}, 400, "shorten it to 200"),
        (3, {"note": "x" * 10_001}, 400, "shorten it to 10,000"),
        (3, {"note": "\x00"}, 400, "control character"),
        (3, {"star": "perhaps"}, 422, "star"),
        (3, {"colour": "red"}, 422, "colour"),
        (3, [], 422, ""),
        (D_SAE, {"name": "war"}, 400, f"feature {D_SAE}"),
        (-1, {"name": "war"}, 422, ""),
    ],
)
def test_what_cannot_be_kept_is_a_sentence_and_nothing_is_written(store, feature, content, code, sentence):
    answer = client(store).post(f"{API}/{feature}", json=content)
    assert answer.status_code == code
    assert sentence in answer.json()["error"]
    assert edits(store) == []


def test_all_annotated_features_are_listed_each_with_what_it_is_called(store):
    app = client(store)
    app.post(f"{API}/3", json=EDIT)
    app.post(f"{API}/1", json={"star": True})
    other = {"feature": 9, "name": "elsewhere", "sae_digest": "another"}
    assert app.post(API, content=json.dumps(other).encode()).json()["of_others"] == 1
    listed = app.get(API).json()
    assert [(row["feature"], row["star"], row["name"]) for row in listed["features"]] == [
        (1, True, None),
        (3, True, "war"),
    ]
    names = store.names("site", [1])
    assert listed["features"][0]["called"] != ""
    assert names.source(1) == "tokens"
    assert [(row["feature"], row["name"], row["sae_digest"]) for row in listed["others"]] == [
        (9, "elsewhere", "another")
    ]
    # another SAE's are not shown elsewhere
    assert app.get(f"{API}/9").json()["name"] is None
    assert app.get("/api/sites/site/names?feature=9").json()["9"]["source"] == "tokens"


def test_files_that_are_not_edits_are_named_on_the_list(store):
    app = client(store)
    app.post(f"{API}/3", json=EDIT)
    folder = store.layout.annotations("site")
    (folder / "20260101T000000.000000Z-0123456789abcdef.json").write_text("<html>")
    with pytest.warns(UserWarning, match="0123456789abcdef"):
        listed = app.get(API).json()
    assert len(listed["features"]) == 1
    assert len(listed["problems"]) == 1


def test_what_is_exported_is_imported_into_a_copy_once(store, tmp_path):
    app = client(store)
    app.post(f"{API}/3", json=EDIT)
    app.post(f"{API}/4", json={"note": "<script>alert(1)</script>"})
    answer = app.get(f"{API}.jsonl")
    assert answer.headers["content-disposition"] == 'attachment; filename="annotations-site.jsonl"'
    assert [json.loads(line) for line in answer.text.splitlines()] == edits(store)
    copy = make_store(tmp_path / "copy")[1]
    other = client(copy)
    for new in (2, 0):
        done = other.post(API, content=answer.content, headers={"content-type": "application/jsonl"}).json()
        assert (done["new"], done["known"]) == (new, 2 - new)
    assert edits(copy) == edits(store)
    assert other.get(f"{API}/4").json()["note"] == "<script>alert(1)</script>"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"not json\n", "line 1 of the file is not JSON"),
        (b'{"feature": 3, "name": "war"}\n[]\n', "line 2 of the file is not a JSON object"),
        (b'{"feature": 3}\n', "line 1 of the file"),
        (b'{"feature": 40, "name": "war"}\n', "feature 40"),
        (b"\xff\xfe", "line 1 of the file is not JSON"),
    ],
)
def test_a_file_that_is_not_of_edits_is_refused_whole(store, content, sentence):
    answer = client(store).post(API, content=content, headers={"content-type": "application/jsonl"})
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]
    assert edits(store) == []


def test_names_are_those_of_people_then_of_tools_then_tokens(store):
    app = client(store)
    app.post(f"{API}/3", json={"name": "x" * 200})
    answer = app.get("/api/sites/site/names?feature=3&feature=2").json()
    assert answer["3"] == {"name": "x" * 79 + "…", "source": "annotation"}
    assert answer["2"]["source"] == "tokens"
    assert app.get("/api/sites/site/names").status_code == 422
    many = "&".join(f"feature={n}" for n in range(1001))
    assert app.get(f"/api/sites/site/names?{many}").status_code == 422


def test_read_only_answers_403_with_a_sentence_and_writes_nothing(store):
    annotate(store, "site", 3, name="war")
    app = client(store, read_only=True)
    for path, sent in (
        (f"{API}/3", {"json": {"name": "peace"}}),
        (API, {"content": b'{"feature": 3, "star": true}'}),
    ):
        answer = app.post(path, **sent)
        assert answer.status_code == 403
        assert "--read-only" in answer.json()["error"]
    assert app.get(f"{API}/3").json()["name"] == "war"
    assert len(edits(store)) == 1
    page = app.get("/sites/site/feature").text
    assert 'name="note"' not in page
    assert "Import" not in app.get("/sites/site/annotations").text
    assert app.get(f"{API}.jsonl").status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 401),
        ({"authorization": "Bearer other"}, 401),
        ({"authorization": f"Bearer {TOKEN}", "origin": "http://evil.example"}, 403),
        ({"cookie": f"latentlake-{PORT}={TOKEN}", "origin": "null"}, 403),
        ({"cookie": f"latentlake-{PORT}={TOKEN}", "origin": f"http://127.0.0.1:{PORT + 1}"}, 403),
        ({"cookie": f"latentlake-{PORT}={TOKEN}", "host": "evil.example"}, 400),
    ],
)
def test_another_page_and_who_has_no_token_writes_nothing(store, headers, code):
    guarded = Guard(create_app(Explored(store, Places())), TOKEN, frozenset({"127.0.0.1"}), PORT)
    app = TestClient(guarded, base_url=f"http://127.0.0.1:{PORT}")
    for path, sent in ((f"{API}/3", {"json": EDIT}), (API, {"content": b'{"feature": 3, "star": true}'})):
        assert app.post(path, headers=headers, **sent).status_code == code
    assert edits(store) == []
    own = {"cookie": f"latentlake-{PORT}={TOKEN}", "origin": f"http://127.0.0.1:{PORT}"}
    assert app.post(f"{API}/3", json=EDIT, headers=own).status_code == 200
    assert len(edits(store)) == 1
