"""Shards in flight are told of every few seconds, and a worker that does not answer holds up nothing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.executors import watch


class Backend:
    """Two workers; `done` says how far each is."""

    def __init__(self):
        self.done, self.killed = {"w0": 0, "w1": 0}, []

    def process(self, worker, shard):
        return (worker, shard)

    def wait(self, tickets, timeout_s):
        return list(tickets)

    def result(self, ticket):
        return "receipt"

    def kill(self, worker):
        self.killed.append(worker)

    def draining_nodes(self):
        return {"n9"}

    def rows_done(self, worker, shard):
        return self.done[worker]


@pytest.fixture
def watched(monkeypatch):
    now, events, backend = [0.0], [], Backend()
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: now[0]))
    heartbeat = watch.Heartbeat(lambda **event: events.append(event))
    return watch.watched(backend, heartbeat), backend, now, events


def test_rows_of_every_shard_in_flight_are_told_every_five_seconds(watched):
    seen, backend, now, events = watched
    first, second = seen.process("w0", "000000"), seen.process("w1", "000001")
    backend.done |= {"w0": 30, "w1": 10}
    for now[0] in (1.0, 5.0, 7.0, 9.0):
        assert seen.wait([first, second], 0.5) == [first, second]
    assert events == [{"event": "heartbeat", "in_flight": {"000000": 30, "000001": 10}}]
    seen.result(first)
    now[0] = 11.0
    seen.wait([second], 0.5)
    assert events[1] == {"event": "heartbeat", "in_flight": {"000001": 10}}


def test_a_killed_worker_is_no_longer_asked(watched):
    seen, backend, now, events = watched
    seen.process("w0", "000000")
    seen.kill("w0")
    now[0] = 60.0
    seen.wait([], 0.5)
    assert (events, backend.killed) == ([{"event": "heartbeat", "in_flight": {}}], ["w0"])


def test_of_twins_the_farther_one_counts(watched):
    seen, backend, now, events = watched
    backend.done |= {"w0": 30, "w1": 10}
    seen.process("w0", "000000"), seen.process("w1", "000000")
    now[0] = 6.0
    seen.wait([], 0.5)
    assert events == [{"event": "heartbeat", "in_flight": {"000000": 30}}]


def test_everything_else_goes_to_the_backend(watched):
    assert watched[0].draining_nodes() == {"n9"}
