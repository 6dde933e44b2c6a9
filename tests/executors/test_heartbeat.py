"""Shards in flight are reported every few seconds, by a dispatcher and by a worker in this process."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.executors import dispatch
from pipeline.executors.dispatch import Dispatcher, Policy
from pipeline.monitor import heartbeat
from tests.executors.test_dispatch import FAST, FakeBackend


@pytest.fixture
def now(monkeypatch):
    times = [0.0]
    monkeypatch.setattr(heartbeat, "time", SimpleNamespace(monotonic=lambda: times[0]))
    return times


class Working(FakeBackend):
    """Workers that are 30 rows into their shard; looking at them makes the clock go on by 3 s."""

    def wait(self, tickets, timeout_s):
        self.times[0] += 3
        return super().wait(tickets, timeout_s)

    def rows_done(self, worker, shard):
        return 30 if worker in self.alive else 0


def test_a_dispatcher_tells_the_rows_of_every_shard_in_flight(now):
    backend, events = Working(), []
    backend.times = now
    shards = [f"{n}" for n in range(6)]
    list(Dispatcher(shards, backend, Policy(workers=2, **FAST), on_event=lambda **e: events.append(e)).run())
    beats = [event["in_flight"] for event in events if event["event"] == "heartbeat"]
    assert all(set(rows) <= set(shards) and set(rows.values()) <= {30} for rows in beats)
    assert any(beats)


def test_of_twins_the_farther_one_counts(now):
    backend, events = FakeBackend(), []
    backend.rows_done = lambda worker, shard: {"w0": 5, "w1": 9}[worker]
    events_seen = Dispatcher([], backend, Policy(), on_event=lambda **e: events.append(e))
    events_seen._slots = {name: dispatch.Slot(name, 0.0, shard="a") for name in ("w1", "w0")}
    now[0] = 5.0
    events_seen._poll_cluster()
    assert events == [{"event": "heartbeat", "in_flight": {"a": 9}}]


def test_a_worker_in_this_process_is_heard_every_five_seconds(now):
    events = []
    heart = heartbeat.Heartbeat(lambda **event: events.append(event))
    for now[0], rows in ((1.0, 10), (5.0, 20), (7.0, 30), (10.0, 40)):
        heart.emit_one("000000", rows)
    assert [event["in_flight"] for event in events] == [{"000000": 20}, {"000000": 40}]
