"""The events of a run: from its beginning to its end, or to its error, each with time, run and shard."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.monitor import journal as module
from pipeline.monitor.events import read_events
from pipeline.monitor.journal import journal
from pipeline.monitor.run_state import RunState
from pipeline.plans.plan import agree_on_plan, make_plan, resolve
from pipeline.store.records.tokens import read_lake
from schemas.layout import Layout
from tests.fixtures.receipts import receipt
from tests.fixtures.runs import extracted, run_file


def silent(**event):
    """Nobody listens."""


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    store = extracted(run_file(folder), tables=False)
    resolved, _ = resolve(run_file(folder))
    return agree_on_plan(store.layout, make_plan(resolved, read_lake(store.layout))), store.layout


def test_a_run_begins_and_ends_in_the_log_of_its_pass(plan):
    made, layout = plan
    events = list(read_events(layout, "mid"))
    begin, *_, end = events
    shards = len([event for event in events if event["event"] == "committed"])
    assert [event["event"] for event in events[:2]] == ["begin", "ready"]
    assert (begin["plan"], begin["shards"], begin["workers"]) == (made.hash, shards, 1)
    assert (end["event"], end["shards"], end["why"]) == ("end", shards, None)
    assert end["nnz"] == sum(event.get("nnz", 0) for event in events[:-1]) > 0
    assert len({event["run"] for event in events}) == 1
    assert all(event["node"] and event["time"] > 0 for event in events if event["event"] != "end")


def test_an_error_ends_the_log_and_passes_on(tmp_path, plan):
    with pytest.raises(KeyboardInterrupt), journal(Layout(tmp_path), plan[0], silent, RunState()):
        raise KeyboardInterrupt
    last = list(read_events(Layout(tmp_path), "mid"))[-1]
    assert (last["event"], last["why"]) == ("end", "KeyboardInterrupt")


def test_a_signal_that_ended_the_run_goes_by_its_name(tmp_path, plan):
    with pytest.raises(SystemExit), journal(Layout(tmp_path), plan[0], silent, RunState()):
        raise SystemExit(128 + 15)  # what `jobs.command.exits` makes of a SIGTERM
    assert list(read_events(Layout(tmp_path), "mid"))[-1]["why"] == "SIGTERM"


def test_heartbeats_are_heard_at_once_and_kept_once_a_minute(tmp_path, plan, monkeypatch):
    now, heard = [0.0], []
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: now[0]))
    with journal(Layout(tmp_path), plan[0], lambda **event: heard.append(event["event"]), RunState()) as log:
        for now[0] in (1.0, 6.0, 59.0, 61.0, 66.0):
            log(event="heartbeat", in_flight={"000000": 5})
    kept = [event["event"] for event in read_events(Layout(tmp_path), "mid")]
    assert (heard.count("heartbeat"), kept.count("heartbeat")) == (5, 2)


def test_a_commit_is_reported_with_what_it_holds(tmp_path, plan):
    with journal(Layout(tmp_path), plan[0], silent, RunState()) as log:
        log.committed(receipt("000003"))
    event = list(read_events(Layout(tmp_path), "mid"))[1]
    events_seen = {name: event[name] for name in ("shard", "node", "rows", "nnz", "bytes", "seconds")}
    assert events_seen == {
        "shard": "000003",
        "node": "n0",
        "rows": 100,
        "nnz": 700,
        "bytes": 2800,
        "seconds": 2.0,
    }
