"""The events of runs fold to their states, whether they come one by one or lie in a log, old or damaged."""

from __future__ import annotations

import json
import time

import pytest

from pipeline.monitor.run_state import run_at_work, runs_of
from schemas.layout import Layout


def at(seconds, **event):
    return {"time": float(seconds), "run": "r", **event}


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


@pytest.mark.parametrize(
    "event", ["ready", "quarantined", "heartbeat", "committed", "worker_replaced", "other"]
)
def test_a_line_that_lacks_what_ours_have_counts_as_a_sign_of_life_alone(event):
    result = runs_of([at(0, event="begin"), at(7, event=event), at(9, event="ready", slot="a")])[-1]
    assert (result.last, result.workers, result.rows, result.quarantined) == (9.0, {"a"}, 0, {})
    assert runs_of([at(0, event="begin"), at(7, event=event)])[-1].last == 7.0


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
