"""Dispatch with faked workers: in any order of deaths, errors and delays each shard ends exactly once."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.executors.dispatch import CallFailedError, Dispatcher, Policy, Slot, WorkerLostError
from pipeline.executors.ledger import Ledger
from schemas.errors import InputError, NodeError
from schemas.records import Receipt
from schemas.values import Failure, Hello

HELLO = Hello(node="n0", pid=1, gpus=(), device="cpu", device_model="fake")
FAST = {"straggler_min_s": 0.0, "poll_s": 0.0}


def receipt(shard: str) -> Receipt:
    return Receipt(
        shard=shard,
        attempt="a",
        plan_hash="p",
        tokens_sha256="t",
        rows=1,
        sites={},
        objects=(),
        seconds={},
        peak_rss_bytes=0,
        environment={},
    )


@dataclass
class FakeBackend:
    """Workers whose n-th call on a shard ends as `script[shard][n]` says; calls end in random order."""

    script: dict[str, list[Exception | None]] = field(default_factory=dict)
    seed: int = 0
    hello_error: Exception | None = None
    leaving: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.random, self.tickets = random.Random(self.seed), itertools.count()
        self.pending: dict[int, tuple[int, str | None]] = {}
        self.calls: Counter[str] = Counter()
        self.alive: set[int] = set()
        self.busy: Counter[int] = Counter()
        self.most_busy = 0

    def spawn(self):
        worker, ticket = next(self.tickets), next(self.tickets)
        self.alive.add(worker)
        self.pending[ticket] = (worker, None)
        return worker, ticket

    def process(self, worker, shard):
        assert worker in self.alive, "a call went to a dead worker"
        self.busy[worker] += 1
        self.most_busy = max(self.most_busy, self.busy[worker])
        ticket = next(self.tickets)
        self.pending[ticket] = (worker, shard)
        self.calls[shard] += 1
        return ticket

    def wait(self, tickets, timeout_s):
        if not tickets:
            return []
        return self.random.sample(list(tickets), k=self.random.randint(1, len(tickets)))

    def result(self, ticket):
        worker, shard = self.pending.pop(ticket)
        if shard is None:
            if self.hello_error:
                raise self.hello_error
            return HELLO
        self.busy[worker] -= 1
        outcomes = self.script.get(shard, [])
        outcome = outcomes.pop(0) if outcomes else None
        if outcome is not None:
            raise outcome
        return receipt(shard)

    def kill(self, worker):
        self.alive.discard(worker)

    def draining_nodes(self):
        return self.leaving

    def rows_done(self, worker, shard):
        return 0

    def resources(self):
        return "the cluster has nothing"


def run(shards, backend, **policy):
    events = []
    dispatcher = Dispatcher(
        shards, backend, Policy(**{**FAST, **policy}), on_event=lambda **event: events.append(event)
    )
    return list(dispatcher.run()), events


ENDINGS = st.sampled_from(["ok", "lost", "preempted", "error", "permanent"])


def outcome(name):
    return {
        "ok": None,
        "lost": WorkerLostError("killed"),
        "preempted": WorkerLostError("spot", preempted=True),
        "error": CallFailedError("boom"),
        "permanent": CallFailedError("NaN", permanent=True),
    }[name]


@settings(max_examples=150, deadline=None)
@given(
    script=st.dictionaries(st.integers(0, 11), st.lists(ENDINGS, max_size=6)),
    workers=st.integers(1, 5),
    seed=st.integers(0, 10_000),
)
def test_every_shard_ends_exactly_once(script, workers, seed):
    shards = [f"{n:06d}" for n in range(12)]
    backend = FakeBackend({f"{n:06d}": [outcome(o) for o in names] for n, names in script.items()}, seed)
    outcomes, _ = run(shards, backend, workers=workers, max_attempts=3)
    assert sorted(o.shard for o in outcomes) == shards
    assert backend.most_busy <= 1, "two calls were in flight on one worker"
    assert not backend.alive, "a worker was left running"


def test_a_shard_is_quarantined_after_its_attempts_and_all_else_completes():
    backend = FakeBackend({"b": [CallFailedError("boom")] * 9})
    outcomes, events = run(["a", "b", "c"], backend, workers=2, max_attempts=3)
    assert [o for o in outcomes if isinstance(o, Failure)] == [Failure("b", 3, "boom")]
    assert {o.shard for o in outcomes if isinstance(o, Receipt)} == {"a", "c"}
    assert [e["event"] for e in events if e.get("shard") == "b"] == ["retry", "retry", "quarantined"]


def test_a_permanent_error_is_not_tried_again():
    backend = FakeBackend({"a": [CallFailedError("NaN", permanent=True)]})
    outcomes, _ = run(["a"], backend)
    assert outcomes == [Failure("a", 1, "NaN")]
    assert backend.calls["a"] == 1


def test_preemptions_are_not_charged_to_the_shard():
    backend = FakeBackend({"a": [WorkerLostError("spot", preempted=True)] * 7})
    outcomes, _ = run(["a"], backend, max_attempts=2)
    assert [o.shard for o in outcomes] == ["a"]
    assert isinstance(outcomes[0], Receipt)


def test_a_lost_worker_is_replaced():
    backend = FakeBackend({"a": [WorkerLostError("killed")]})
    outcomes, events = run(["a", "b"], backend)
    assert all(isinstance(o, Receipt) for o in outcomes)
    assert [e["event"] for e in events].count("ready") == 2


@pytest.mark.parametrize("error", [WorkerLostError("out of memory"), CallFailedError("KeyError: 'x'")])
def test_workers_that_all_fail_while_loading_stop_the_run(error):
    backend = FakeBackend(hello_error=error)
    with pytest.raises(InputError, match=f"4 workers in a row died while loading, the last by: .*{error}"):
        run(["a"], backend)
    assert not backend.alive


def test_a_refused_worker_stops_the_run_and_none_is_left():
    backend = FakeBackend()

    def refuse(hello):
        raise InputError("other files")

    with pytest.raises(InputError, match="other files"):
        list(Dispatcher(["a"], backend, Policy(**FAST), check=refuse).run())
    assert not backend.alive


def test_a_worker_on_a_draining_node_gets_no_new_shard():
    backend = FakeBackend(leaving={"n0"})
    dispatcher = Dispatcher(["a"], backend, Policy(**FAST))
    replaced = []
    dispatcher._on_event = lambda **event: (
        replaced.append(event["why"]) if event["event"] == "worker_replaced" else None,
        backend.leaving.clear() if len(replaced) == 3 else None,
    )
    outcomes = list(dispatcher.run())
    assert [o.shard for o in outcomes] == ["a"]
    assert replaced == ["its node is draining"] * 3
    assert backend.calls["a"] == 1


def test_a_worker_lost_on_a_draining_node_costs_the_shard_no_attempt():
    """Whatever Ray calls the loss, the node was about to go."""
    backend = FakeBackend({"a": [WorkerLostError("unreachable")] * 5})
    backend.draining_nodes = lambda: {"n0"} if backend.busy.total() else set()
    outcomes, _ = run(["a"], backend, max_attempts=1)
    assert [type(outcome) for outcome in outcomes] == [Receipt]
    assert backend.calls["a"] == 6


class PickyBackend(FakeBackend):
    """Every worker but the first is refused, or dies, while it loads."""

    def __post_init__(self):
        super().__post_init__()
        self.loaded = 0

    def result(self, ticket):
        if self.pending[ticket][1] is None:
            self.loaded += 1
            if self.loaded > 1:
                raise self.hello_error
            self.pending.pop(ticket)
            return HELLO
        return super().result(ticket)


@pytest.mark.parametrize("error", [WorkerLostError("out of memory"), NodeError("no such storage")])
def test_one_bad_node_does_not_end_a_run_that_goes_on_elsewhere(error):
    backend = PickyBackend(hello_error=error)
    shards = [f"{n}" for n in range(40)]
    outcomes, events = run(shards, backend, workers=2, respawn_s=0.0, max_spawn_failures=1)
    assert sorted(o.shard for o in outcomes) == sorted(shards)
    assert backend.loaded > 3
    assert {e["was_ready"] for e in events if e["event"] == "worker_replaced"} == {False}


def test_a_worker_that_failed_to_load_is_not_replaced_at_once_while_others_work():
    backend = PickyBackend(hello_error=WorkerLostError("out of memory"))
    run([f"{n}" for n in range(40)], backend, workers=2, respawn_s=60.0)
    assert backend.loaded == 2


def test_the_only_worker_is_refused_with_the_sentence_of_its_node():
    with pytest.raises(InputError, match=r"^node a sees nothing$"):
        run(["a"], FakeBackend(hello_error=NodeError("node a sees nothing")))


class ScriptedBackend(FakeBackend):
    """The n-th worker that answers loads as `hellos[n]` says; all calls end at once, in order."""

    hellos = ()

    def __post_init__(self):
        super().__post_init__()
        self.left = list(self.hellos)

    def wait(self, tickets, timeout_s):
        return list(tickets)

    def result(self, ticket):
        if self.pending[ticket][1] is None:
            self.hello_error = self.left.pop(0) if self.left else None
        return super().result(ticket)


def test_the_delay_of_a_worker_that_failed_to_load_ends_with_the_last_live_one(monkeypatch):
    def sleep(seconds):
        raise AssertionError("nobody was asked for")

    monkeypatch.setattr("pipeline.executors.dispatch.time.sleep", sleep)
    backend = ScriptedBackend({"a": [WorkerLostError("killed")]})
    backend.left = [None, WorkerLostError("out of memory")]
    outcomes, _ = run(["a", "b"], backend, workers=2, respawn_s=1e6)
    assert {type(outcome) for outcome in outcomes} == {Receipt}


def test_a_run_with_no_call_in_flight_sleeps(monkeypatch):
    slept = []
    monkeypatch.setattr("pipeline.executors.dispatch.time.sleep", slept.append)
    assert Dispatcher(["a"], FakeBackend(), Policy(**FAST))._wait(0.5) == []
    assert slept == [0.5]


def test_loads_that_failed_next_to_a_live_worker_do_not_count_once_it_is_lost():
    dead = WorkerLostError("out of memory")
    backend = ScriptedBackend({"b": [WorkerLostError("killed")]})
    backend.left = [None, dead, dead, dead]
    outcomes, _ = run(["a", "b", "c"], backend, workers=2, respawn_s=0.0, max_spawn_failures=1)
    assert {type(outcome) for outcome in outcomes} == {Receipt}
    assert backend.left == []


class EmptyBackend(FakeBackend):
    """A cluster without room for a worker until `room` looks at it have passed."""

    room = 10**9

    def wait(self, tickets, timeout_s):
        self.room -= 1
        return super().wait(tickets, timeout_s) if self.room < 0 else []


def test_a_run_without_a_worker_warns_again_and_again_and_goes_on_when_one_comes():
    backend = EmptyBackend()
    backend.room = 20
    outcomes, events = run(["a"], backend, no_worker_warning_s=0.0)
    assert [o.shard for o in outcomes] == ["a"]
    events_seen = [e["why"] for e in events if e["event"] == "waiting"]
    assert len(events_seen) > 10
    assert events_seen[0].endswith("the cluster has nothing")


def test_a_run_without_a_worker_stops_where_a_limit_is_set():
    backend = EmptyBackend()
    sentence = (
        r"no worker has been ready for 0 s \(extract.no_worker_timeout_s: 1e-06\): the cluster has nothing"
    )
    with pytest.raises(InputError, match=sentence):
        run(["a", "b"], backend, workers=2, no_worker_timeout_s=1e-6)
    assert not backend.alive


def test_all_workers_are_requested_at_once_and_never_more_than_there_are_shards():
    backend = EmptyBackend()
    requested = []
    backend.room = 1
    backend.wait = lambda tickets, timeout_s: (
        requested.append(len(tickets)) or FakeBackend.wait(backend, tickets, timeout_s)
    )
    run(["a", "b", "c"], backend, workers=7)
    assert requested[0] == 3


class StuckBackend(FakeBackend):
    """The first call on shard `slow` never ends."""

    def wait(self, tickets, timeout_s):
        free = [t for t in tickets if self.pending[t][1] != "slow" or self.calls["slow"] > 1]
        return super().wait(free, timeout_s) if free else []


def test_a_straggler_is_twinned_once_idle_workers_are_left():
    backend = StuckBackend()
    shards = ["slow", *(f"{n}" for n in range(8))]
    outcomes, events = run(shards, backend, workers=2)
    assert sorted(o.shard for o in outcomes) == sorted(shards)
    assert backend.calls["slow"] == 2
    assert [e["event"] for e in events].count("twin") == 1


def test_the_ledger_waits_for_the_twin_before_trying_again():
    ledger = Ledger(["a"], max_attempts=3)
    ledger.take()
    ledger.start("a")
    assert ledger.release("a", "lost") is False
    assert ledger.take() is None
    assert ledger.complete("a")
    assert ledger.remaining == 0


def test_a_shard_committed_by_its_twin_is_not_handed_out_twice():
    ledger = Ledger(["a"], max_attempts=3)
    ledger.take()
    ledger.start("a")
    assert [ledger.complete("a"), ledger.complete("a")] == [True, False]


def test_a_permanent_error_waits_for_the_twin_which_may_still_commit():
    ledger = Ledger(["a", "b"], max_attempts=3)
    for shard in ("a", "b"):
        ledger.take()
        ledger.start(shard)
        assert ledger.release(shard, "disk full", permanent=True) is False
        assert not ledger.is_alone(shard), "it would get another twin"
    assert ledger.complete("a")
    assert ledger.release("b", "lost") == Failure("b", 2, "disk full")
    assert ledger.remaining == 0


def test_the_ledger_says_whether_a_shard_is_tried_again():
    ledger = Ledger(["a"], max_attempts=2)
    ledger.take()
    assert ledger.release("a", "lost") is True
    assert ledger.take() == "a"
    ledger.start("a")
    ledger.complete("a")
    assert ledger.release("a", "lost") is False


def test_a_twin_that_is_lost_is_no_retry():
    events = []
    dispatcher = Dispatcher(["a"], FakeBackend(), Policy(), on_event=lambda **event: events.append(event))
    first, twin = Slot(0, 0.0, HELLO, "a"), Slot(1, 0.0, HELLO, "a")
    dispatcher._ledger.take()
    dispatcher._ledger.start("a")
    assert dispatcher._release(twin, "worker lost") == []
    assert events == []
    assert dispatcher._release(first, "worker lost") == []
    assert [event["event"] for event in events] == ["retry"]
