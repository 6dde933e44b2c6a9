"""The state of a run, folded from its events: as they happen, or from the log of its pass."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.monitor.events import read_events
from pipeline.monitor.heartbeat import HEARTBEAT_LOGGED_S
from schemas.layout import Layout

DEAD_AFTER_S = 300.0
"""A run logs an event once a minute; after so much silence it is taken for dead."""
RATE_OVER_S = 300.0

Event = dict[str, Any]


@dataclass
class RunState:
    """One run over a pass. Times in Unix seconds."""

    quarantined: dict[str, str] = field(default_factory=dict)
    """Shard -> why; those of earlier runs too, until they are committed."""
    id: str = ""
    began: float = 0.0
    node: str | None = None
    pid: int | None = None
    ended: bool = False
    why: str | None = None
    """The error that it ended with."""
    last: float = 0.0
    """Time of the latest event."""
    workers: set[str] = field(default_factory=set)
    retries: int = 0
    in_flight: dict[str, int] = field(default_factory=dict)
    """Shard -> rows that are done of it."""
    shards: int = 0
    """Committed, as are rows, nonzeros and bytes."""
    rows: int = 0
    nnz: int = 0
    bytes: int = 0
    beats: int = 0
    done: deque[tuple[float, int]] = field(default_factory=deque)
    """Time, and rows committed or done in flight by then: of the last minutes, and the last one before."""

    def take(self, event: Event) -> None:
        """One event more, in order."""
        kind, self.last = event["event"], max(self.last, event["time"])
        if kind == "begin":
            self.id, self.began = str(event.get("run")), event["time"]
            self.node, self.pid = event.get("node"), event.get("pid")
            self.done.append((self.began, 0))
        elif kind == "ready":
            self.workers.add(event["slot"])
        elif kind == "worker_replaced":
            self.workers.discard(event["slot"])
        elif kind == "retry":
            self.retries += 1
        elif kind == "quarantined":
            self.in_flight.pop(event["shard"], None)
            self.quarantined[event["shard"]] = str(event.get("why"))
        elif kind == "heartbeat":
            self.in_flight, self.beats = dict(event["in_flight"]), self.beats + 1
            self._note(event["time"])
        elif kind == "committed":
            self.quarantined.pop(event["shard"], None)
            self.in_flight.pop(event["shard"], None)
            self.shards += 1
            self.rows += event["rows"]
            self.nnz += event.get("nnz", 0)
            self.bytes += event.get("bytes", 0)
            # later only heartbeats are noted: in a log the rows in flight may be a minute old at a commit
            if not self.beats or event["time"] < self.began + RATE_OVER_S:
                self._note(event["time"])
        elif kind == "end":
            self.ended, self.why = True, event.get("why")

    def _note(self, time: float) -> None:
        # one entry from before the last minutes stays, for a rate over all of them to begin at
        self.done.append((time, self.rows_done))
        while len(self.done) > 1 and self.done[1][0] <= time - RATE_OVER_S:
            self.done.popleft()

    @property
    def rows_done(self) -> int:
        """Rows that are committed, or done in flight."""
        return self.rows + sum(self.in_flight.values())

    def is_live(self, now: float) -> bool:
        """Whether it may be at work at the time `now`, as far as its events show."""
        return bool(self.id) and not self.ended and now - self.last < DEAD_AFTER_S

    def rate(self, now: float) -> float:
        """Rows a second over the last minutes up to the last sign, those of shards in flight included.

        A silence that is longer than that between two heartbeats counts as a time in which nothing is done.
        """
        if not self.done:
            return 0.0
        (began, before), (last, rows) = self.done[0], self.done[-1]
        # A sign is due every HEARTBEAT_LOGGED_S: only what is missing beyond that is silence.
        silence = max(0.0, now - last - HEARTBEAT_LOGGED_S)
        return max(0, rows - before) / max(last - began + silence, 1e-9)  # a lost worker's rows are undone


def runs_of(events: Iterable[Event]) -> list[RunState]:
    """The runs over a pass in the order in which they began.

    The first has no id: it holds the events from before any run began (those of version 0.2 have no `begin`).
    """
    latest = RunState()
    runs = {latest.id: latest}
    for event in events:
        if "event" not in event or not isinstance(event.get("time"), int | float):
            continue
        run_id = str(event.get("run", latest.id))
        if event["event"] == "begin":
            latest = runs[run_id] = RunState(latest.quarantined)
        if run_id in runs:
            with suppress(KeyError, TypeError, ValueError):  # a line that is not one of ours
                runs[run_id].take(event)
    return list(runs.values())


def run_at_work(layout: Layout, pass_name: str) -> str | None:
    """In words, a run over the pass that has not ended; None where there is none.

    One whose process is gone from this machine is dead at once, any other after `DEAD_AFTER_S` of silence.
    """
    now = time.time()
    for run in runs_of(read_events(layout, pass_name)):
        if run.is_live(now) and not _is_gone(run):
            silent = max(0.0, now - run.last)
            return f"a run ({run.node}, process {run.pid}, last sign {silent:,.0f} s ago) is using it"
    return None


def _is_gone(run: RunState) -> bool:
    """Whether the process that began a run was on this machine, and is no more (or waits to be reaped)."""
    if run.node != socket.gethostname() or not isinstance(run.pid, int) or not 0 < run.pid < 1 << 31:
        return False
    try:
        os.kill(run.pid, 0)  # sends nothing, and fails where there is no such process
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    with suppress(OSError, IndexError):
        return Path(f"/proc/{run.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False
