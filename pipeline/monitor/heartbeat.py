"""Signs of life within a shard: every few seconds, how many rows of each shard in flight are done.

Reported, never waited for: a worker that does not answer holds up nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

OnEvent = Callable[..., None]
"""Is called with the fields of each event of a run."""

HEARTBEAT_S = 5.0
HEARTBEAT_LOGGED_S = 60.0
"""Heartbeats reach the log of the pass less often."""


class Heartbeat:
    """Reports the shards in flight, as the event `heartbeat`, at most every few seconds."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event, self._last = on_event, time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether the last sign is old enough."""
        return time.monotonic() - self._last >= HEARTBEAT_S

    def emit(self, rows: dict[str, int]) -> None:
        """Rows done, by shard in flight."""
        self._last = time.monotonic()
        self._on_event(event="heartbeat", in_flight=rows)

    def emit_one(self, shard: str, rows: int) -> None:
        """The same for a worker in this process, which calls as often as it likes."""
        if self.is_due:
            self.emit({shard: rows})
