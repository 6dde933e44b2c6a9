"""Signs of life within a shard: every few seconds, how many rows of each shard in flight are done.

Only told, never waited for: a worker that does not answer holds up nothing.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from typing import Any, Protocol, cast

from pipeline.executors.dispatch import Backend, OnEvent

HEARTBEAT_S = 5.0


class Heartbeat:
    """Tells of the shards in flight, as the event `heartbeat`, at most every few seconds."""

    def __init__(self, on_event: OnEvent, every_s: float = HEARTBEAT_S) -> None:
        self._on_event, self._every_s, self._last = on_event, every_s, time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last sign is old enough."""
        return time.monotonic() - self._last >= self._every_s

    def tell(self, rows: dict[str, int]) -> None:
        """Rows done, by shard in flight."""
        self._last = time.monotonic()
        self._on_event(event="heartbeat", in_flight=rows)

    def one(self, shard: str, rows: int) -> None:
        """The same for a worker in this process, which calls as often as it likes."""
        if self.is_due:
            self.tell({shard: rows})


class Watchable(Backend, Protocol):
    """A backend whose workers can be asked while they work."""

    def rows_done(self, worker: Any, shard: str) -> int:
        """Rows of its shard in flight that a worker has done, as last heard; does not wait."""


class _Watched:
    """Passes everything on, and remembers which worker runs which shard."""

    def __init__(self, backend: Watchable, heartbeat: Heartbeat) -> None:
        self._backend, self._heartbeat = backend, heartbeat
        self._running: dict[Hashable, tuple[Any, str]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def process(self, worker: Any, shard: str) -> Hashable:
        ticket = self._backend.process(worker, shard)
        self._running[ticket] = (worker, shard)
        return ticket

    def wait(self, tickets: Sequence[Hashable], timeout_s: float) -> list[Hashable]:
        if self._heartbeat.is_due:
            told: dict[str, int] = {}
            for worker, shard in self._running.values():
                told[shard] = max(self._backend.rows_done(worker, shard), told.get(shard, 0))
            self._heartbeat.tell(told)
        return self._backend.wait(tickets, timeout_s)

    def result(self, ticket: Hashable) -> Any:
        self._running.pop(ticket, None)
        return self._backend.result(ticket)

    def kill(self, worker: Any) -> None:
        gone = [ticket for ticket, (other, _) in self._running.items() if other is worker]
        for ticket in gone:
            del self._running[ticket]
        self._backend.kill(worker)


def watched(backend: Watchable, heartbeat: Heartbeat) -> Backend:
    """The backend, which tells of its shards in flight whenever somebody waits for it."""
    return cast("Backend", _Watched(backend, heartbeat))
