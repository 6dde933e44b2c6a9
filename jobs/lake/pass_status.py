"""How far a pass is, from its receipts and its events; a writer may be at work meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from jobs.terminal.progress import duration
from pipeline.monitor.events import DEAD_AFTER_S, read_events
from pipeline.monitor.journal import HEARTBEAT_LOGGED_S
from pipeline.monitor.prediction import Prediction, read_prediction
from pipeline.monitor.tally import Tally
from pipeline.store import FeatureStore
from pipeline.store.records.dropped import live_part
from schemas.layout import Layout

RATE_OVER_S = 300.0

Event = dict[str, Any]


@dataclass
class LastRun:
    """The latest run over a pass, from its events."""

    id: str = ""
    began: float = 0.0
    ended: bool = False
    why: str | None = None
    """The error that it ended with."""
    last: float = 0.0
    """When anything was heard."""
    workers: set[str] = field(default_factory=set)
    retries: int = 0
    quarantined: dict[str, str] = field(default_factory=dict)
    in_flight: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    """Committed."""
    beats: int = 0
    done: deque[tuple[float, int]] = field(default_factory=deque)
    """Time, and rows committed or done in flight by then: of the last minutes, and the last one before."""

    def take(self, event: Event) -> None:
        """One event more, in order."""
        kind, self.last = event["event"], max(self.last, event["time"])
        if kind == "ready":
            self.workers.add(event["slot"])
        elif kind == "worker_replaced":
            self.workers.discard(event["slot"])
        elif kind == "retry":
            self.retries += 1
        elif kind == "quarantined":
            self.quarantined[event["shard"]] = str(event.get("why"))
        elif kind == "heartbeat":
            self.in_flight, self.beats = dict(event["in_flight"]), self.beats + 1
            self._note(event["time"])
        elif kind == "committed":
            self._committed(event)
        elif kind == "end":
            self.ended, self.why = True, event.get("why")

    def _committed(self, event: Event) -> None:
        self.quarantined.pop(event["shard"], None)
        self.in_flight.pop(event["shard"], None)
        self.rows += event["rows"]
        if not self.beats or event["time"] < self.began + RATE_OVER_S:
            self._note(event["time"])  # later only heartbeats are: those in flight are a minute old here

    def _note(self, time: float) -> None:
        self.done.append((time, self.rows + sum(self.in_flight.values())))
        while len(self.done) > 1 and self.done[1][0] <= time - RATE_OVER_S:
            self.done.popleft()

    def rate(self, now: float) -> float:
        """Rows a second over the last minutes up to the last sign, those of shards in flight included.

        A silence that is longer than that between two heartbeats counts as a time in which nothing is done.
        """
        if not self.done:
            return 0.0
        (began, before), (last, rows) = self.done[0], self.done[-1]
        silence = max(0.0, now - last - HEARTBEAT_LOGGED_S)
        return max(0, rows - before) / max(last - began + silence, 1e-9)  # a lost worker's rows are undone


@dataclass(frozen=True)
class PassStatus:
    """What can be said of a pass."""

    name: str
    shards: int
    rows: int
    tally: Tally
    state: str
    is_live: bool
    """Whether a run is at work, as far as its events show."""
    rate: float
    workers: int
    retries: int
    in_flight: dict[str, int]
    quarantined: dict[str, str]
    prediction: Prediction | None

    @property
    def is_finished(self) -> bool:
        """Whether every shard is committed."""
        return self.tally.shards >= self.shards

    @property
    def left(self) -> int:
        """Rows that are neither committed nor done in flight."""
        return max(0, self.rows - self.tally.rows - sum(self.in_flight.values()))


def read_status(store: FeatureStore, name: str, now: float) -> PassStatus:
    """The status of a pass at the time `now` (Unix seconds), its receipts as the store first read them."""
    tally = Tally()
    receipts = store.pass_receipts(name)
    for receipt in receipts.values():
        tally.add(live_part(receipt, store.dropped[name]))
    run = last_run(read_events(store.layout, name))
    is_finished = tally.shards >= len(store.shards)
    is_live = bool(run.id) and not run.ended and not is_finished and now - run.last < DEAD_AFTER_S
    return PassStatus(
        name=name,
        shards=len(store.shards),
        rows=sum(record.rows for record in store.shards),
        tally=tally,
        state="finished" if is_finished else _state(run, now),
        is_live=is_live,
        rate=run.rate(now) if is_live else 0.0,
        workers=len(run.workers) if is_live else 0,
        retries=run.retries,
        in_flight=run.in_flight if is_live else {},
        quarantined={shard: why for shard, why in run.quarantined.items() if shard not in receipts},
        prediction=read_prediction(store.layout, name),
    )


def has_begun(layout: Layout, name: str) -> bool:
    """Whether a run has logged any event of the pass."""
    return next(iter(read_events(layout, name)), None) is not None


def state_of(layout: Layout, name: str, now: float) -> str:
    """What the last run over a pass is doing, in words."""
    return _state(last_run(read_events(layout, name)), now)


def last_run(events: Iterable[Event]) -> LastRun:
    """What the events say of the run that began last; quarantined shards stay until they are committed."""
    run = LastRun()
    for event in events:
        if event.get("event") == "begin":
            run = LastRun(event["run"], event["time"], quarantined=run.quarantined)
            run.done.append((run.began, 0))
        if "event" in event and "time" in event and event.get("run", run.id) == run.id:
            run.take(event)
    return run


def _state(run: LastRun, now: float) -> str:
    if not run.id:
        return "no run has begun"
    ago = f"{duration(max(0.0, now - run.last))} ago"
    if run.ended:
        return f"stopped {ago} by {run.why}" if run.why else f"ended {ago}"
    if now - run.last < DEAD_AFTER_S:
        return f"running, last sign {ago}" if run.workers else f"starting, last sign {ago}"
    return f"no sign for {duration(now - run.last)}: probably dead"
