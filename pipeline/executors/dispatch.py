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
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from pipeline.executors.ledger import Ledger
from pipeline.monitor.heartbeat import Heartbeat, OnEvent
from schemas.errors import InputError, NodeError
from schemas.records import Receipt
from schemas.values import Failure, Hello

_RECENT = 1000
"""Shards whose times define what a straggler is."""


class WorkerLostError(Exception):
    """A worker died or cannot be reached; `preempted`: its node was taken away, which no shard pays for."""

    def __init__(self, why: str, *, preempted: bool = False) -> None:
        super().__init__(why)
        self.preempted = preempted


class CallFailedError(Exception):
    """A call raised inside a worker that is still alive; `permanent` when trying again cannot help."""

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
        """The value of a ready ticket; raises WorkerLostError, CallFailedError or NodeError."""

    def rows_done(self, worker: Any, shard: str) -> int:
        """Rows of its shard in flight that a worker has done, as last heard; does not wait."""

    def kill(self, worker: Any) -> None:
        """End a worker, whatever it does."""

    def draining_nodes(self) -> set[str]:
        """Nodes that are about to leave."""

    def resources(self) -> str:
        """What there is, and what a worker needs, in words."""


@dataclass(frozen=True)
class Policy:
    """When a worker or an attempt is abandoned. Times in seconds."""

    workers: int = 1
    max_attempts: int = 4
    max_spawn_failures: int = 3
    shard_timeout_s: float = 3600.0
    straggler_factor: float = 4.0
    straggler_min_s: float = 30.0
    poll_s: float = 1.0
    respawn_s: float = 30.0
    """Before a worker that failed to load is replaced, while others live."""
    no_worker_warning_s: float = 60.0
    no_worker_timeout_s: float | None = None


@dataclass
class Slot:
    """A worker, its hello, and the shard it runs."""

    worker: Any
    since: float
    hello: Hello | None = None
    shard: str | None = None
    name: str = ""

    def place(self) -> dict[str, str | None]:
        """The fields of an event that say where something happened."""
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
        self._next_poll = self._spawn_after = self._last_live = self._last_reported = time.monotonic()
        self._load_failures = 0
        self._took: deque[float] = deque(maxlen=_RECENT)
        self._heartbeat = Heartbeat(on_event)

    def run(self) -> Iterator[Receipt | Failure]:
        """Yield each shard's receipt, or its failure, in the order in which they end."""
        try:
            while self._ledger.remaining:
                self._poll_cluster()
                self._fill()
                outcomes = [outcome for ticket in self._wait(0.5) for outcome in self._finish_call(ticket)]
                late = time.monotonic() - self._policy.shard_timeout_s
                overdue = [name for name, slot in self._slots.items() if slot.shard and slot.since < late]
                outcomes += [o for name in overdue for o in self._replace(name, "shard timeout")]
                # Idle workers are fed before outcomes are handed out: whoever takes these may be slow.
                outcomes += self._assign_shards()
                yield from outcomes
        finally:
            for slot in self._slots.values():
                self._backend.kill(slot.worker)

    def _wait(self, timeout_s: float) -> list[Hashable]:
        """Tickets that are ready; a run that has none in flight does not spin."""
        if not self._inflight:
            time.sleep(timeout_s)
            return []
        return self._backend.wait(list(self._inflight), timeout_s)

    @property
    def _is_live(self) -> bool:
        """Whether some worker is ready."""
        return any(slot.hello for slot in self._slots.values())

    def _fill(self) -> None:
        """Ask at once for all workers that are wanted and not there; they come when they come."""
        while len(self._slots) < min(self._policy.workers, self._ledger.remaining):
            if self._is_live and time.monotonic() < self._spawn_after:
                return
            worker, ticket = self._backend.spawn()
            slot_id = uuid.uuid4().hex[:8]
            self._slots[slot_id] = Slot(worker, time.monotonic(), name=slot_id)
            self._inflight[ticket] = slot_id

    def _finish_call(self, ticket: Hashable) -> list[Receipt | Failure]:
        """Take in one finished call: a hello, which is checked, or a receipt."""
        # A ticket that is not in flight any more is of a worker that was replaced since `wait` gave it.
        slot_id = self._inflight.pop(ticket, None)
        if slot_id is None:
            return []
        slot = self._slots[slot_id]
        try:
            value = self._backend.result(ticket)
            if slot.hello is None:
                self._check(value)
        except WorkerLostError as error:
            taken_away = error.preempted or (slot.hello is not None and slot.hello.node in self._leaving)
            return self._replace(slot_id, f"worker lost: {error}", charged=not taken_away)
        except NodeError as error:
            return self._replace(slot_id, str(error), refused=True)
        except CallFailedError as error:
            if slot.hello is None:
                return self._replace(slot_id, str(error))
            return self._release(slot, str(error), permanent=error.permanent)
        if slot.hello is None:
            slot.hello, self._load_failures = value, 0
            self._on_event(event="ready", slot=slot_id, **ready_event(value))
            return []
        shard, slot.shard = slot.shard, None
        assert shard is not None
        if not self._ledger.complete(shard):  # the other of two copies was quicker
            return []
        self._took.append(time.monotonic() - slot.since)
        return [value]

    def _release(
        self, slot: Slot, why: str, *, permanent: bool = False, charged: bool = True
    ) -> list[Receipt | Failure]:
        """The slot's shard did not end here."""
        shard, slot.shard = slot.shard, None
        if shard is None:
            return []
        released = self._ledger.release(shard, why, permanent=permanent, charged=charged)
        if not released:
            return []
        self._on_event(
            event="quarantined" if isinstance(released, Failure) else "retry",
            shard=shard,
            attempts=self._ledger.attempts(shard),
            why=released.error if isinstance(released, Failure) else why,
            **slot.place(),
        )
        return [released] if isinstance(released, Failure) else []

    def _replace(
        self, slot_id: str, why: str, *, charged: bool = True, refused: bool = False
    ) -> list[Receipt | Failure]:
        """End a worker; `_fill` starts another in its place."""
        # Its tickets go with it: a call that ends all the same is not taken in, nor its shard ended twice.
        slot = self._slots.pop(slot_id)
        outcome = self._release(slot, why, charged=charged)
        self._inflight = {ticket: owner for ticket, owner in self._inflight.items() if owner != slot_id}
        self._backend.kill(slot.worker)
        self._on_event(event="worker_replaced", slot=slot_id, why=why, was_ready=slot.hello is not None)
        if slot.hello is not None and not self._is_live:
            self._load_failures = 0  # failures while other workers were ready predict nothing
        if slot.hello is not None or not charged:
            return outcome
        # A worker failed to load. While others work, the next one is started later; when none works and every
        # new one fails, the run stops. A node that is refused stays refused, so it has fewer attempts.
        self._load_failures += 1
        most = self._policy.max_spawn_failures
        if self._is_live:
            self._spawn_after = time.monotonic() + self._policy.respawn_s
        elif self._load_failures > (min(most, self._policy.workers - 1) if refused else most):
            if self._load_failures == 1:
                raise InputError(why)
            raise InputError(
                f"{self._load_failures} workers in a row died while loading, the last by: {why}; fix that "
                "(is there memory for the model, does the node see the store?) and run again"
            )
        return outcome

    def _assign_shards(self) -> list[Receipt | Failure]:
        """Give each idle worker a shard, or a second copy of a straggler when none waits."""
        outcomes: list[Receipt | Failure] = []
        for slot_id, slot in list(self._slots.items()):
            if slot.hello is None or slot.shard:
                continue
            if slot.hello.node in self._leaving:
                outcomes += self._replace(slot_id, "its node is draining")
            elif (shard := self._ledger.take() or self._straggler()) is not None:
                slot.shard, slot.since = shard, time.monotonic()
                self._inflight[self._backend.process(slot.worker, shard)] = slot_id
        return outcomes

    def _straggler(self) -> str | None:
        """A shard that has run alone far longer than the others took; it also starts on a second worker."""
        if len(self._took) < 5:
            return None
        # The median, for a few slow shards must not raise the limit by which they are called slow.
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

    def _poll_cluster(self) -> None:
        """Now and then: how far the shards are, which nodes are draining, and whether any worker is alive.

        InputError where none was ready for longer than the policy allows.
        """
        if self._heartbeat.is_due:
            rows: dict[str, int] = {}
            for slot in self._slots.values():
                if (shard := slot.shard) is not None:  # of two copies the farther one counts
                    rows[shard] = max(self._backend.rows_done(slot.worker, shard), rows.get(shard, 0))
            self._heartbeat.emit(rows)
        now = time.monotonic()
        if now < self._next_poll:
            return
        self._next_poll = now + self._policy.poll_s
        self._leaving = self._backend.draining_nodes()
        if self._is_live:
            self._last_live = self._last_reported = now
            return
        why = f"no worker has been ready for {now - self._last_live:.0f} s"
        limit = self._policy.no_worker_timeout_s
        if limit is not None and now - self._last_live > limit:
            raise InputError(
                f"{why} (extract.no_worker_timeout_s: {limit:g}): {self._backend.resources()}; fix that "
                "and run again, what is committed stays"
            )
        if now - self._last_reported > self._policy.no_worker_warning_s:
            self._last_reported = now
            self._on_event(event="waiting", why=f"{why}: {self._backend.resources()}")


def ready_event(hello: Hello) -> dict[str, Any]:
    """What is reported of a worker that is ready."""
    agrees = {} if hello.agreement is None else {"agreement": asdict(hello.agreement)}
    return {"node": hello.node, "pid": hello.pid, "gpus": hello.gpus, "device": hello.device_model, **agrees}
