"""Steered prompts of the application are what `steer_text` writes; one at a time, and they can be stopped."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest
from starlette.testclient import TestClient

from jobs.explore import steered
from jobs.explore.lake import Explored
from jobs.explore.server import create_app
from pipeline.evaluation.generation import Writing, steer_text
from pipeline.evaluation.steering import Change
from pipeline.evaluation.typed_text import Places, run_text
from pipeline.store import FeatureStore
from schemas.run.file import parse_run_file
from tests.fixtures.runs import extracted, run_file
from tests.fixtures.synthetic import content_without_model

PLACES = Places(model="tests.kit:mild_lm")
JSON = {"content-type": "application/json"}
PROMPT = "w3 w5 <script> w9"
CHANGES = [Change(3, "add", 4.0), Change(7, "ablate")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    model = {"path": "tests.kit:mild_lm"}
    return extracted(run_file(tmp_path_factory.mktemp("lake"), "abstopk", model=model))


@pytest.fixture(scope="module")
def client(store: FeatureStore) -> TestClient:
    return TestClient(create_app(Explored(store, PLACES)), base_url="http://127.0.0.1")


def prompt_of(**changes) -> dict:
    content = {"prompt": PROMPT, "changes": [change._asdict() for change in CHANGES], "n_tokens": 5}
    return content | changes


def finished(client: TestClient, state: dict) -> dict:
    until = time.monotonic() + 60
    while not state["done"]:
        assert time.monotonic() < until
        time.sleep(0.02)
        state = client.get(f"/api/steerings/{state['steering']}").json()
    return state


def steer(client: TestClient, **changes) -> dict:
    answer = client.post("/api/sites/mid/steer", json=prompt_of(**changes))
    assert answer.status_code == 200, answer.text
    return finished(client, answer.json())


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 4}, {"temperature": 2.0, "top_k": 3}])
def test_both_texts_are_those_of_the_python_call(client, store, options):
    state = steer(client, **options)
    expected = steer_text(store, "mid", PROMPT, CHANGES, n_tokens=5, places=PLACES, **options)
    assert (state["plain"], state["steered"]) == (expected.plain, expected.steered)
    assert (state["tokens"], state["n_tokens"], state["error"]) == (5, 5, None)
    for text, ids in zip(state["texts"], (expected.plain_ids, expected.steered_ids), strict=True):
        pieces = [piece["text"] for piece in text["pieces"]]
        assert pieces[: text["prompt"]] == [" w3", " w5", " <unk>", " w9"]
        assert pieces[text["prompt"] :] == store.pieces(ids.tolist())
        whole = run_text(store, "mid", "".join(pieces).replace("<unk>", "nonsense"), PLACES)
        values = client.get(f"/api/texts/{text['text']}/features/3").json()["values"]
        np.testing.assert_allclose(values, whole.activations[:, [3]].toarray()[:, 0], rtol=1e-3)


def test_one_seed_gives_one_text(client):
    first, again, other = (steer(client, temperature=2.0, seed=seed) for seed in (1, 1, 2))
    assert (first["plain"], first["steered"]) == (again["plain"], again["steered"])
    assert first["plain"] != other["plain"]


def test_the_plain_text_of_a_prompt_is_written_once(client, store, monkeypatch):
    prompt, ran, own = "w8 w9 w10", [], Writing.logits

    def logits(self, context, *, changed):
        ran.append(changed)
        return own(self, context, changed=changed)

    monkeypatch.setattr(Writing, "logits", logits)
    first = steer(client, prompt=prompt)
    assert ran.count(False) == ran.count(True) == 5
    other = steer(client, prompt=prompt, changes=[{"feature": 5, "value": 30.0}])
    assert (ran.count(False), ran.count(True)) == (5, 10)
    expected = steer_text(store, "mid", prompt, {5: 30.0}, n_tokens=5, places=PLACES)
    assert (other["plain"], other["steered"]) == (expected.plain, expected.steered)
    assert first["plain"] == expected.plain
    ran.clear()
    steer(client, prompt=prompt, temperature=1.0)
    assert ran.count(False) > 0


def test_a_feature_has_its_name_and_largest_activation(client, store):
    feature = int(store.scan_features("mid").sort("n_active").collect()["feature"][-1])
    answer = client.get(f"/api/sites/mid/steer/{feature}").json()
    assert answer["name"] == store.names("mid").name(feature) != ""
    assert answer["maximum"] == np.abs(store.rows_of("mid", feature)[1]).max()


@pytest.fixture
def held(monkeypatch):
    """Writing waits before its second token, until it is let go; events `wrote`, `go`."""
    wrote, go, own = threading.Event(), threading.Event(), Writing.steps

    def steps(self):
        for step in own(self):
            wrote.set()
            yield step
            assert go.wait(30)

    monkeypatch.setattr(Writing, "steps", steps)
    yield wrote, go
    go.set()


def test_a_run_shows_how_far_it_is_and_stops_when_it_is_cancelled(client, held):
    wrote, go = held
    state = client.post("/api/sites/mid/steer", json=prompt_of()).json()
    assert wrote.wait(60)
    state = client.get(f"/api/steerings/{state['steering']}").json()
    assert (state["done"], state["tokens"], state["n_tokens"]) == (False, 1, 5)
    assert state["plain"].startswith(" w")
    waiting = client.post("/api/sites/mid/steer", json=prompt_of()).json()
    assert client.get("/api/state").json()["running"]
    for number in (waiting["steering"], state["steering"]):
        assert client.delete(f"/api/steerings/{number}").json()["cancelled"]
    go.set()
    state = finished(client, state)
    assert (state["cancelled"], state["tokens"], state["error"]) == (True, 2, None)  # it was at the second
    assert len(state["texts"][0]["pieces"]) == 6
    waiting = finished(client, waiting)
    assert (waiting["tokens"], "texts" in waiting, waiting["error"]) == (0, False, None)


def test_too_many_waiting_prompts_are_refused(client, held, monkeypatch):
    wrote, go = held
    monkeypatch.setattr(steered, "MOST_WAITING", 2)
    states = [client.post("/api/sites/mid/steer", json=prompt_of()).json() for _ in range(2)]
    assert wrote.wait(60)
    answer = client.post("/api/sites/mid/steer", json=prompt_of())
    assert (answer.status_code, answer.json()["error"][:31]) == (400, "2 prompts wait for the model: c")
    go.set()
    assert [finished(client, state)["tokens"] for state in states] == [5, 5]


def test_old_prompts_are_forgotten(client, monkeypatch):
    monkeypatch.setattr(steered, "MOST_KEPT", 2)
    numbers = [steer(client)["steering"] for _ in range(3)]
    assert client.get(f"/api/steerings/{numbers[0]}").status_code == 400
    assert client.get(f"/api/steerings/{numbers[2]}").json()["done"]
    assert "run it again" in client.delete("/api/steerings/99999").json()["error"]


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        ({"changes": []}, 422, "changes: List should have at least 1 item"),
        ({"changes": [{"feature": 64}]}, 400, "features are 0 to 63"),
        ({"changes": [{"feature": -1}]}, 422, "greater than or equal to 0"),
        ({"changes": [{"feature": 1, "operation": "eval"}]}, 422, "operation: Input should be 'set', 'add'"),
        ({"changes": [{"feature": 1, "value": "1e999"}]}, 422, "finite number"),
        ({"prompt": "w1 " * 9000}, 422, "at most 20000 characters"),
        ({"prompt": "\ud800"}, 422, "prompt: Input should be a valid string"),
        ({"n_tokens": 0}, 422, "n_tokens: Input should be greater than or equal to 1"),
        ({"n_tokens": 1001}, 422, "less than or equal to 1000"),
        ({"temperature": -1}, 422, "greater than or equal to 0"),
        ({"temperature": "nan"}, 422, "finite number"),
        ({"seed": 2**63}, 422, "less than or equal to"),
        ({"top_k": 0}, 422, "greater than or equal to 1"),
    ],
)
def test_what_is_not_possible_is_refused_before_the_model_runs(client, changes, status, message):
    content = json.dumps(prompt_of(**changes))  # as ASCII, so that half a character goes through
    answer = client.post("/api/sites/mid/steer", content=content, headers=JSON)
    assert answer.status_code == status
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": " "}, "has no tokens"),
        ({"n_tokens": 100}, "generate at most"),
        ({"changes": [{"feature": 1, "value": 3e38}]}, "give smaller values"),
        ({"changes": [{"feature": 1, "value": 1e39}]}, "is not a finite number of float32"),
    ],
)
def test_what_the_model_shows_to_be_impossible_is_the_runs_error(client, changes, message):
    state = steer(client, **changes)
    assert message in state["error"]
    assert "texts" not in state


def test_a_site_without_a_model_says_why(tmp_path):
    content = content_without_model(tmp_path / "store")
    lake = Explored(extracted(parse_run_file(content, "run.yaml")), Places())
    client = TestClient(create_app(lake), base_url="http://127.0.0.1")
    page = client.get("/sites/made/steer")
    assert page.status_code == 200
    assert "site &#39;made&#39; is synthetic: there is no model that could write" in page.text
    assert "<form" not in page.text
    assert "steer.js" not in page.text
    answer = client.post("/api/sites/made/steer", json=prompt_of())
    assert (answer.status_code, "is synthetic" in answer.json()["error"]) == (400, True)
