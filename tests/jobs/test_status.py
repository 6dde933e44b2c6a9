"""A store alone tells whether its run is at work, has ended, or has died, and how far it is."""

from __future__ import annotations

import json
import time

import pytest

from jobs.lake import status as module
from jobs.lake.pass_status import read_status
from jobs.lake.status import status, watch_passes
from pipeline.monitor.events import read_events
from pipeline.monitor.prediction import predict, sample, write_prediction
from pipeline.monitor.run_state import DEAD_AFTER_S
from pipeline.store import FeatureStore
from tests.fixtures.receipts import receipt
from tests.fixtures.runs import extracted, run_file


@pytest.fixture
def store(tmp_path):
    return extracted(run_file(tmp_path), tables=False)


def interrupted(store, *, after, keep_end=False):
    """The store as it is while (or after) a run that has committed so many shards."""
    events = list(read_events(store.layout, "mid"))
    kept, committed = [], 0
    for event in events:
        committed += event["event"] == "committed"
        if event["event"] != "end" or keep_end:
            kept.append(event)
        if committed == after and not keep_end:
            break
    for record in store.shards[after:]:
        store.layout.commit("mid", record.name).unlink()
    write(store, kept)
    return FeatureStore.open(store.layout.root), kept[-1]["time"]


def write(store, events):
    store.layout.events("mid").write_text("".join(json.dumps(event) + "\n" for event in events))


def at(seconds, **event):
    return {"time": float(seconds), "run": "r", **event}


def test_a_finished_run(store):
    result = read_status(store, "mid", time.time())
    state = (result.state, result.is_finished, result.is_live, result.quarantined)
    assert state == ("finished", True, False, {})


def test_a_run_at_work_has_a_rate_workers_and_time_left(store):
    open_store, last = interrupted(store, after=2)
    write(store, [*read_events(store.layout, "mid"), at(last, event="heartbeat", in_flight={"000002": 40})])
    events = list(read_events(store.layout, "mid"))
    events[-1]["run"] = events[0]["run"]
    write(store, events)
    result = read_status(open_store, "mid", last + 10)
    assert result.state == "running, last sign 10 s ago"
    assert (result.is_live, len(result.run.workers), result.run.in_flight) == (True, 1, {"000002": 40})
    rows = sum(record.rows for record in store.shards[:2]) + 40
    assert result.run.rate(last + 10) == pytest.approx(rows / (last - events[0]["time"]))
    assert result.left == sum(record.rows for record in store.shards) - rows


def test_a_run_that_has_said_nothing_for_long_is_taken_for_dead(store):
    open_store, last = interrupted(store, after=2)
    result = read_status(open_store, "mid", last + 720)
    assert (result.state, result.is_live) == ("no sign for 12 min: probably dead", False)
    assert read_status(open_store, "mid", last + DEAD_AFTER_S - 1).is_live


def test_a_run_that_was_stopped_says_by_what(store):
    open_store, last = interrupted(store, after=1)
    run = next(iter(read_events(store.layout, "mid")))["run"]
    end = {**at(last + 1, event="end", shards=1, why="KeyboardInterrupt"), "run": run}
    write(store, [*read_events(store.layout, "mid"), end])
    assert read_status(open_store, "mid", last + 4).state == "stopped 3 s ago by KeyboardInterrupt"


def test_a_shard_that_has_a_receipt_is_not_called_quarantined(store):
    """Its commit was not logged: the writer died, or another run made it."""
    gave_up = {**at(2, event="quarantined", shard="000001", why="NaN")}
    write(store, [at(0, event="begin"), gave_up, {**gave_up, "shard": "000099"}])
    assert read_status(store, "mid", time.time()).quarantined == {"000099": "NaN"}


def test_a_receipt_is_read_once_however_long_somebody_watches(store, monkeypatch):
    from pipeline.store.records import commits

    interrupted(store, after=2)
    made, reads = store.layout.commit("mid", "000001"), []
    real = commits.read_many
    monkeypatch.setattr(commits, "read_many", lambda paths: reads.append(len(paths)) or real(paths))
    again = made.read_bytes()
    made.unlink()
    watched = FeatureStore.open(store.layout.root)
    assert read_status(watched, "mid", time.time()).tally.shards == 1
    assert len(watched.committed("mid")) == 1
    made.write_bytes(again)
    watched = watched.again()
    assert read_status(watched, "mid", time.time()).tally.shards == 2
    assert list(watched.pass_receipts("mid")) == ["000000", "000001"]
    assert reads == [1, 1]


def test_a_writer_at_work_leaves_half_a_line(store):
    path = store.layout.events("mid")
    path.write_bytes(path.read_bytes() + b'{"time": 1, "eve')
    assert read_status(store, "mid", time.time()).state == "finished"


def test_what_is_printed(store, capsys):
    open_store, _ = interrupted(store, after=3)
    result = predict(
        [sample(receipt())],
        plan_hash="p",
        source="a probe",
        rows=3600 * 50,
        shard_rows=1000,
        workers=1,
        load_seconds=0,
    )
    write_prediction(open_store.layout, "mid", result)
    assert not status(str(store.layout.root))
    shown = capsys.readouterr().out
    assert f"pass mid: 3/{len(store.shards)} shards committed; running, last sign" in shown
    assert "tokens/s over the last minutes" in shown
    assert "1 worker, 0 retries" in shown
    assert (
        "predicted from a probe: 50 tokens/s per worker, 7.0 nonzeros and 28 bytes per token, 60 min" in shown
    )


def test_watching_ends_when_all_is_committed(store, capsys, monkeypatch):
    open_store, _ = interrupted(store, after=3)
    kept = {name: open_store.layout.commit("mid", name) for name in [r.name for r in store.shards[3:]]}
    receipts = store.pass_receipts("mid") if store._receipts else {}
    monkeypatch.setattr(module.time, "sleep", lambda seconds: commit_all(store, kept, receipts))
    watch_passes(str(store.layout.root))
    assert capsys.readouterr().out.count("pass mid:") == 2


def commit_all(store, paths, receipts):
    for name, path in paths.items():
        made = store.layout.commit("mid", store.shards[0].name).read_bytes()
        path.write_bytes(made.replace(b'"shard":"000000"', f'"shard":"{name}"'.encode()))
