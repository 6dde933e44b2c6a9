"""Progress of an extraction counts rows within shards, and tells people what they should know."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from jobs.lake.extract_progress import ExtractionProgress
from pipeline.monitor.run_state import RunState
from pipeline.monitor.tally import Tally
from tests.fixtures.receipts import receipt


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def begun():
    clock, before = Clock(), Tally()
    before.add(receipt())
    progress = ExtractionProgress(clock=clock)
    with progress.meter:
        state = RunState()
        progress.begin(SimpleNamespace(skipped=1, total=11, rows=1100, tally=before, state=state))

        def happens(**event):
            state.take({"time": clock.now, **event})
            progress.on_event(**event)

        yield happens, clock


def lines(capsys):
    return capsys.readouterr().out.splitlines()


def test_a_long_shard_shows_signs_of_life_in_the_log(begun, capsys):
    happens, clock = begun
    happens(event="ready", slot="w0", node="n0")
    for clock.now in (5.0, 11.0, 22.0):
        happens(event="heartbeat", in_flight={"000001": int(clock.now)})
    assert lines(capsys) == [
        "extract: 1/11 shards, 1 tokens/s, 16 min left, 1 worker",
        "extract: 1/11 shards, 1 tokens/s, 16 min left, 1 worker",
    ]


def test_loading_is_no_work_and_rates_count_what_is_committed(begun, capsys):
    happens, clock = begun
    clock.now = 100.0
    happens(event="ready", slot="w0", node="n0")
    lines(capsys)
    clock.now = 102.0
    happens(event="retry", shard="000001", why="[boom]")
    clock.now = 112.0
    happens(event="committed", shard="000001", rows=120, nnz=600)
    assert lines(capsys) == [
        "retry: shard 000001, why [boom]",
        "extract: 2/11 shards, 10 tokens/s, 50 nonzeros/s, 88 s left, 1 worker, 1 retries",
    ]


def test_workers_that_left_are_not_counted(begun, capsys):
    happens, clock = begun
    for slot in ("w0", "w1"):
        happens(event="ready", slot=slot, node="n0")
    happens(event="worker_replaced", slot="w0", why="killed")
    happens(event="worker_replaced", slot="w9", why="never came up")
    clock.now = 20.0
    happens(event="heartbeat", in_flight={})
    assert lines(capsys)[-1] == "extract: 1/11 shards, 1 worker ready"
