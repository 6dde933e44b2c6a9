"""Dispatch of shards to workers that come, go, fail and straggle. The driver alone schedules and retries.

One call is in flight per worker; a worker is fed again before its receipt is handed out, so a slow consumer
does not idle it. What runs the workers is a `Backend`: Ray actors in `ray_backend`, fakes in tests.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.executors.ledger import Failure, Ledger
from schemas.errors import InputError
from schemas.records import Receipt
from schemas.values import Hello

OnEvent = Callable[..., None]

_RECENT = 1000
"""Shards whose times say what a straggler is."""


class WorkerLostError(Exception):
    """A worker died or can not be reached; `preempted`: its node was taken away, which no shard pays for."""

    def __init__(self, why: str, *, preempted: bool = False) -> None:
        super().__init__(why)
        self.preempted = preempted


class CallFailedError(Exception):
    """A call raised inside a worker that is still alive; `permanent` when trying again can not help."""

    def __init__(self, why: str, *, permanent: bool = False) -> None:
        super().__init__(why)
        self.permanent = permanent


class Backend(Protocol):
    """Starts workers and carries calls to them; a call is named by a hashable ticket."""

    def spawn(self) -> tuple[Any, Hashable]:
        """Start a worker; return it and the ticket of its `hello`."""

    def process(self, worker: Any, shard: str) -> Hashable:
        """Ask a worker for a shard."""

    def wait(self, tickets: Sequence[Hashable], timeout_s: float) -> list[Hashable]:
        """The tickets that are ready, waiting up to `timeout_s` for the first."""

    def result(self, ticket: Hashable) -> Any:
        """The value of a ready ticket; raises WorkerLostError or CallFailedError."""

    def kill(self, worker: Any) -> None:
        """End a worker, whatever it does."""

    def draining_nodes(self) -> set[str]:
        """Nodes that are about to leave."""


@dataclass(frozen=True)
class Policy:
    """When a worker or an attempt is given up. Times in seconds."""

    workers: int = 1
    max_attempts: int = 4
    max_spawn_failures: int = 3
    shard_timeout_s: float = 3600.0
    straggler_factor: float = 4.0
    straggler_min_s: float = 30.0
    poll_s: float = 1.0
    quiet_s: float = 60.0


@dataclass
class Slot:
    """A worker, what it said when ready, and the shard it runs."""

    worker: Any
    since: float
    hello: Hello | None = None
    shard: str | None = None
    name: str = ""

    def place(self) -> dict[str, str | None]:
        """What an event says of where something happened."""
        return {"slot": self.name, "node": self.hello.node if self.hello else None}


class Dispatcher:
    """One run over a list of shards."""

    def __init__(
        self,
        shards: Sequence[str],
        backend: Backend,
        policy: Policy,
        *,
        check: Callable[[Hello], None] = lambda hello: None,
        on_event: OnEvent = lambda **event: None,
    ) -> None:
        self._ledger = Ledger(shards, policy.max_attempts)
        self._backend, self._policy, self._check, self._on_event = backend, policy, check, on_event
        self._slots: dict[str, Slot] = {}
        self._inflight: dict[Hashable, str] = {}
        self._leaving: set[str] = set()
        self._next_poll = self._last_sign = time.monotonic()
        self._spawn_failures = 0
        self._took: deque[float] = deque(maxlen=_RECENT)

    def run(self) -> Iterator[Receipt | Failure]:
        """Yield each shard's receipt, or its failure, in the order in which they end."""
        try:
            for _ in range(min(self._policy.workers, self._ledger.remaining)):
                self._spawn()
            while self._ledger.remaining:
                self._look_around()
                ready = self._backend.wait(list(self._inflight), 0.5)
                outcomes = [outcome for ticket in ready for outcome in self._settle(ticket)]
                outcomes += self._expire()
                outcomes += self._feed()
                yield from outcomes
        finally:
            for slot in self._slots.values():
                self._backend.kill(slot.worker)

    def _spawn(self) -> None:
        worker, ticket = self._backend.spawn()
        slot_id = uuid.uuid4().hex[:8]
        self._slots[slot_id] = Slot(worker, time.monotonic(), name=slot_id)
        self._inflight[ticket] = slot_id

    def _send(self, slot: Slot, slot_id: str, shard: str) -> None:
        slot.shard, slot.since = shard, time.monotonic()
        self._inflight[self._backend.process(slot.worker, shard)] = slot_id

    def _settle(self, ticket: Hashable) -> list[Receipt | Failure]:
        """Take in one finished call."""
        slot_id = self._inflight.pop(ticket, None)
        if slot_id is None:
            return []
        slot, self._last_sign = self._slots[slot_id], time.monotonic()
        try:
            value = self._backend.result(ticket)
        except WorkerLostError as error:
            return self._replace(slot_id, f"worker lost: {error}", charged=not error.preempted)
        except CallFailedError as error:
            if slot.hello is None:
                return self._replace(slot_id, str(error))
            return self._release(slot, str(error), permanent=error.permanent)
        if slot.hello is None:
            return self._welcome(slot_id, slot, value)
        return self._complete(slot, value)

    def _welcome(self, slot_id: str, slot: Slot, hello: Hello) -> list[Receipt | Failure]:
        self._check(hello)
        slot.hello, self._spawn_failures = hello, 0
        self._on_event(event="ready", slot=slot_id, **ready_event(hello))
        return []

    def _complete(self, slot: Slot, receipt: Receipt) -> list[Receipt | Failure]:
        shard, slot.shard = slot.shard, None
        assert shard is not None
        if not self._ledger.complete(shard):
            return []
        self._took.append(time.monotonic() - slot.since)
        return [receipt]

    def _release(
        self, slot: Slot, why: str, *, permanent: bool = False, charged: bool = True
    ) -> list[Receipt | Failure]:
        """The slot's shard did not end here."""
        shard, slot.shard = slot.shard, None
        if shard is None:
            return []
        failure = self._ledger.release(shard, why, permanent=permanent, charged=charged)
        self._on_event(
            event="quarantined" if failure else "retry",
            shard=shard,
            attempts=self._ledger.attempts(shard),
            why=why,
            **slot.place(),
        )
        return [failure] if failure else []

    def _replace(self, slot_id: str, why: str, *, charged: bool = True) -> list[Receipt | Failure]:
        """End a worker and start another in its place."""
        slot = self._slots.pop(slot_id)
        self._spawn_failures += slot.hello is None
        outcome = self._release(slot, why, charged=charged)
        self._inflight = {ticket: owner for ticket, owner in self._inflight.items() if owner != slot_id}
        self._backend.kill(slot.worker)
        self._on_event(event="worker_replaced", slot=slot_id, why=why)
        if self._spawn_failures > self._policy.max_spawn_failures:
            raise InputError(
                f"{self._spawn_failures} workers in a row died while loading, the last by: {why}; mend that "
                "(is there memory for the model, does the node see the store?) and run again"
            )
        if self._ledger.remaining:
            self._spawn()
        return outcome

    def _expire(self) -> list[Receipt | Failure]:
        """Give up calls that run for too long."""
        late = time.monotonic() - self._policy.shard_timeout_s
        overdue = [slot_id for slot_id, slot in self._slots.items() if slot.shard and slot.since < late]
        return [o for slot_id in overdue for o in self._replace(slot_id, "shard timeout")]

    def _feed(self) -> list[Receipt | Failure]:
        """Give each idle worker a shard, or a twin of a straggler when none waits."""
        outcomes: list[Receipt | Failure] = []
        for slot_id, slot in list(self._slots.items()):
            if slot.hello is None or slot.shard:
                continue
            if slot.hello.node in self._leaving:
                outcomes += self._replace(slot_id, "its node is draining")
            elif (shard := self._ledger.take() or self._straggler()) is not None:
                self._send(slot, slot_id, shard)
        return outcomes

    def _straggler(self) -> str | None:
        """A shard that has run alone for far longer than the others took; it is started again, as a twin."""
        if len(self._took) < 5:
            return None
        limit = max(
            self._policy.straggler_min_s, self._policy.straggler_factor * statistics.median(self._took)
        )
        alone = [s for s in self._slots.values() if s.shard and self._ledger.is_alone(s.shard)]
        oldest = min(alone, key=lambda slot: slot.since, default=None)
        if oldest is None or oldest.shard is None or time.monotonic() - oldest.since < limit:
            return None
        age = round(time.monotonic() - oldest.since, 1)
        self._on_event(event="twin", shard=oldest.shard, age_s=age, **oldest.place())
        self._ledger.start(oldest.shard)
        return oldest.shard

    def _look_around(self) -> None:
        """Now and then: which nodes are leaving, and is anybody there at all."""
        now = time.monotonic()
        if now < self._next_poll:
            return
        self._next_poll = now + self._policy.poll_s
        self._leaving = self._backend.draining_nodes()
        if now - self._last_sign > self._policy.quiet_s and not any(s.hello for s in self._slots.values()):
            self._last_sign = now
            self._on_event(event="waiting", why=f"no worker is up after {self._policy.quiet_s:.0f} s")


def ready_event(hello: Hello) -> dict[str, Any]:
    """What is told of a worker that is ready."""
    return {"node": hello.node, "pid": hello.pid, "gpus": hello.gpus, "device": hello.device_model}
