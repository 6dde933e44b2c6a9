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
from pipeline.monitor.run_state import DEAD_AFTER_S, run_at_work, runs_of
from pipeline.store import FeatureStore
from schemas.layout import Layout
from tests.lakes import extracted, run_file
from tests.receipts import receipt


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


def test_of_several_runs_the_last_counts_and_a_quarantined_shard_is_reported_until_it_is_committed():
    begin, give_up = {"event": "begin"}, {"event": "quarantined", "shard": "000001", "why": "NaN"}
    first = [at(0, **begin), at(1, event="ready", slot="a"), at(2, event="retry"), at(3, **give_up)]
    second = [{**event, "run": "s"} for event in (at(10, **begin), at(11, event="ready", slot="b"))]
    result = runs_of([*first, *second])[-1]
    assert (result.workers, result.retries, result.quarantined) == ({"b"}, 0, {"000001": "NaN"})
    done = {**at(12, event="committed", shard="000001", rows=5), "run": "s"}
    late = at(13, event="worker_replaced", slot="b")  # of the first run, whose workers are not the second's
    result = runs_of([*first, *second, done, late])[-1]
    assert (result.quarantined, result.workers) == ({}, {"b"})


@pytest.mark.parametrize(("workers", "shard_s"), [(1, 600), (4, 600), (3, 20)])
@pytest.mark.parametrize("now", [130, 3000, 3590])
def test_the_rate_is_that_of_the_last_minutes_however_long_a_shard_takes(workers, shard_s, now):
    """870 tokens/s, of workers that begin their shards one after another and beat once a minute."""
    speed, events = 870 / workers, [at(0, event="begin")]
    for time_s in range(1, now):
        ages = {worker: time_s + worker * shard_s / workers for worker in range(workers)}
        for worker, age in ages.items():
            if age >= shard_s and age % shard_s < 1:
                rows = min(time_s, shard_s) * speed
                events.append(
                    at(time_s, event="committed", shard=f"{worker}-{age // shard_s - 1}", rows=rows)
                )
        if time_s % 60 == 5:
            in_flight = {
                f"{w}-{age // shard_s}": min(time_s, age % shard_s) * speed for w, age in ages.items()
            }
            events.append(at(time_s, event="heartbeat", in_flight=in_flight))
    assert runs_of(events)[-1].rate(now) == pytest.approx(870, rel=0.1)


def test_a_run_that_has_fallen_silent_gets_slower():
    events = [at(0, event="begin"), at(100, event="committed", shard="0", rows=1000)]
    assert runs_of(events)[-1].rate(150) == 10
    assert runs_of(events)[-1].rate(260) == 5
    assert runs_of([])[-1].rate(5) == 0


def test_events_from_before_runs_had_an_id_belong_to_no_run():
    """As in stores of format 2; what they say of shards counts all the same."""
    old = [{**at(1, event="quarantined", shard="000001", why="NaN")}, at(2, event="ready", slot="a")]
    for event in old:
        del event["run"]
    (before,) = runs_of([*old, {"event": "of no time"}, {"time": 3.0}, at(3, event="retry")])
    assert (before.id, before.quarantined, before.retries, before.is_live(4)) == (
        "",
        {"000001": "NaN"},
        0,
        False,
    )
    assert runs_of([*old, at(4, event="begin")])[-1].quarantined == {"000001": "NaN"}


def test_a_run_at_work_is_named_though_a_later_one_has_ended(tmp_path):
    layout, now = Layout(tmp_path), time.time()
    begun = [at(now, event="begin", run=run, node="elsewhere", pid=pid) for run, pid in (("a", 1), ("b", 2))]
    layout.events("mid").parent.mkdir(parents=True)
    ended = {**at(now, event="end", why=None), "run": "b"}
    layout.events("mid").write_text("".join(json.dumps(event) + "\n" for event in [*begun, ended]))
    assert "process 1," in run_at_work(layout, "mid")
    with layout.events("mid").open("a") as log:
        log.write(json.dumps({**ended, "run": "a"}) + "\n")
    assert run_at_work(layout, "mid") is None


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
        "predicted from a probe: 50 tokens/s of a worker, 7.0 nonzeros and 28 bytes a token, 60 min" in shown
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
