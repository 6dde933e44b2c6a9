"""What the application answers of typed texts is what `elicit` computes of them."""

from __future__ import annotations

import numpy as np
import pytest
from starlette.testclient import TestClient

from jobs.evaluation.elicit import elicited, selected_rows
from jobs.explore import typed as room
from jobs.explore.lake import Explored
from jobs.explore.server import create_app
from pipeline.evaluation.typed_text import Places, run_text
from pipeline.store import FeatureStore
from tests.fixtures.runs import extracted, run_file

TEXT = "w3 w5 w9 nonsense w60 w3"
PLACES = Places(model="tests.kit:tiny_lm")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return extracted(run_file(tmp_path_factory.mktemp("lake"), "abstopk"))


@pytest.fixture(scope="module")
def client(store: FeatureStore) -> TestClient:
    return TestClient(create_app(Explored(store, PLACES)), base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def number(client: TestClient) -> int:
    answer = client.post("/api/sites/mid/texts", json={"text": TEXT})
    assert answer.status_code == 200
    return answer.json()["text"]


def test_a_text_has_its_tokens_and_which_are_counted(client, number):
    answer = client.get(f"/api/texts/{number}").json()
    assert (answer["site"], answer["tokens"]) == ("mid", 6)
    assert [piece["text"] for piece in answer["pieces"]] == [" w3", " w5", " w9", " <unk>", " w60", " w3"]
    assert [piece["counted"] for piece in answer["pieces"]] == [True, True, True, False, True, True]


@pytest.mark.parametrize(("by", "column"), [("activation", "activation"), ("surprise", "surprise_bits")])
@pytest.mark.parametrize("piece", [None, 0, 4])
def test_active_features_are_those_that_elicit_ranks(client, store, number, by, column, piece):
    query = {"by": by, "n": 5} | ({} if piece is None else {"piece": piece})
    answer = client.get(f"/api/texts/{number}/features", params=query).json()
    typed = run_text(store, "mid", TEXT, PLACES)
    table = elicited(store, "mid", typed, selected_rows(store, typed, piece))
    assert answer["n"] == table.height
    values = table.to_dicts()
    expected = sorted(values, key=lambda row: (-abs(row[column]), row["feature"]))[:5]
    assert [row["feature"] for row in answer["features"]] == [row["feature"] for row in expected]
    assert [row["activation"] for row in answer["features"]] == [row["activation"] for row in expected]
    names = store.names("mid", [row["feature"] for row in expected])
    assert [row["name"] for row in answer["features"]] == [names.name(row["feature"]) for row in expected]


def test_a_piece_that_is_not_counted_has_no_features(client, number):
    assert client.get(f"/api/texts/{number}/features?piece=3").json() == {"features": [], "n": 0}


def test_a_feature_has_its_activation_at_each_piece_and_its_largest_in_the_store(client, store, number):
    typed = run_text(store, "mid", TEXT, PLACES)
    feature = int(typed.activations.indices[0])
    answer = client.get(f"/api/texts/{number}/features/{feature}").json()
    assert answer["values"] == typed.activations[:, [feature]].toarray()[:, 0].tolist()
    assert answer["maximum"] == np.abs(store.rows_of("mid", feature)[1]).max(initial=0)


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "sentence"),
    [
        ("POST", "/api/sites/mid/texts", {"text": ""}, 400, "no tokens"),
        ("POST", "/api/sites/mid/texts", {"text": "w1 " * 9_000}, 422, ""),
        ("POST", "/api/sites/none/texts", {"text": "w1"}, 400, "none"),
        ("POST", "/api/sites/mid/texts", {}, 422, ""),
        ("GET", "/api/texts/99", None, 400, "text 99 is not kept any more"),
        ("GET", "/api/texts/{number}/features?piece=6", None, 400, "piece 6 is not in the text"),
        ("GET", "/api/texts/{number}/features?piece=-1", None, 400, "piece -1 is not in the text"),
        ("GET", "/api/texts/{number}/features?by=colour", None, 422, ""),
        ("GET", "/api/texts/{number}/features?n=0", None, 422, ""),
        ("GET", "/api/texts/{number}/features/64", None, 400, "feature 64"),
        ("GET", "/api/texts/{number}/features/-1", None, 422, ""),
        ("POST", "/api/sites/mid/contexts/99999", None, 400, "context 99999 is not in the lake"),
        ("POST", "/api/sites/mid/contexts/-1", None, 422, ""),
        ("GET", "/static/../server.py", None, 404, ""),
        ("GET", "/static/server.py", None, 404, ""),
    ],
)
def test_what_cannot_be_answered_is_a_sentence(client, number, method, path, body, code, sentence):
    answer = client.request(method, path.format(number=number), json=body)
    assert answer.status_code == code
    assert sentence in answer.text
    assert "Traceback" not in answer.text


def test_a_stored_context_is_opened_without_a_model(client, store, monkeypatch):
    monkeypatch.setattr(room, "TextSession", None)
    context = 7
    answer = client.post(f"/api/sites/mid/contexts/{context}").json()
    shard = next(record for record in store.shards if context < record.context_start + record.contexts)
    tokens = store.token_shard("mid", shard.name)
    place = context - shard.context_start
    rows = slice(tokens.context_ptr[place] + 1, tokens.context_ptr[place + 1])  # without BOS
    assert answer["tokens"] == rows.stop - rows.start
    assert [piece["counted"] for piece in answer["pieces"]] == tokens.counted[rows].tolist()
    dense = store.csr("mid", shard.name)[rows].toarray()
    for feature in np.flatnonzero(dense.any(0)).tolist():
        values = client.get(f"/api/texts/{answer['text']}/features/{feature}").json()["values"]
        assert values == dense[:, feature].tolist()


def test_the_oldest_texts_are_forgotten(store, monkeypatch):
    monkeypatch.setattr(room, "MOST_TEXTS", 2)
    texts = room.Texts(store, PLACES)
    numbers = [texts.run("mid", f"w{n}") for n in range(3)]
    with pytest.raises(room.InputError, match="type it again"):
        texts.text(numbers[0])
    assert [texts.text(number)["pieces"][0]["text"] for number in numbers[1:]] == [" w1", " w2"]


def test_the_model_is_loaded_once(store, monkeypatch):
    loaded = []
    monkeypatch.setattr(room, "TextSession", lambda *given: loaded.append(given) or room_session(*given))
    texts = room.Texts(store, PLACES)
    for text in ("w1", "w2", "w3"):
        texts.run("mid", text)
    assert len(loaded) == 1


room_session = room.TextSession


def test_pages_need_no_other_server_and_no_script_of_their_own(client):
    page = client.get("/sites/mid/text").text
    assert "http:" not in page.replace("http://127.0.0.1", "")
    assert "<script>" not in page
    assert " style=" not in page
    for path in ("/static/report.css", "/static/explore.css", "/static/common.js", "/static/text.js"):
        assert path in page
        assert client.get(path).status_code == 200


def test_the_first_page_is_that_of_texts(client):
    answer = client.get("/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sites/mid/text")


def test_the_api_describes_itself(client):
    paths = client.get("/api/openapi.json").json()["paths"]
    assert set(paths) == {
        "/api/state",
        "/api/sites/{site}/annotations",
        "/api/sites/{site}/annotations.jsonl",
        "/api/sites/{site}/annotations/{feature}",
        "/api/sites/{site}/clusters",
        "/api/sites/{site}/compare/features",
        "/api/sites/{site}/compare/groups",
        "/api/sites/{site}/compare/progress",
        "/api/sites/{site}/compare/sites",
        "/api/sites/{site}/contexts/{context}",
        "/api/sites/{site}/find",
        "/api/sites/{site}/features/{feature}",
        "/api/sites/{site}/features/{feature}/examples",
        "/api/sites/{site}/map",
        "/api/sites/{site}/names",
        "/api/sites/{site}/steer",
        "/api/sites/{site}/steer/{feature}",
        "/api/sites/{site}/texts",
        "/api/steerings/{steering}",
        "/api/texts/{number}",
        "/api/texts/{number}/features",
        "/api/texts/{number}/features/{feature}",
    }
    assert client.get("/docs").status_code == 404  # those pages load scripts from elsewhere
