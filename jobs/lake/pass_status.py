"""How far a pass is, from its receipts and its events; a writer may be at work meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.terminal.progress import duration
from pipeline.monitor.events import read_events
from pipeline.monitor.prediction import Prediction, read_prediction
from pipeline.monitor.run_state import RunState, runs_of
from pipeline.monitor.tally import Tally
from pipeline.store import FeatureStore
from pipeline.store.records.dropped import live_part
from schemas.layout import Layout


@dataclass(frozen=True)
class PassStatus:
    """What can be said of a pass at a time."""

    name: str
    shards: int
    rows: int
    tally: Tally
    run: RunState
    """The latest."""
    now: float
    quarantined: dict[str, str]
    prediction: Prediction | None

    @property
    def is_finished(self) -> bool:
        """Whether every shard is committed."""
        return self.tally.shards >= self.shards

    @property
    def is_live(self) -> bool:
        """Whether a run is at work, as far as its events show."""
        return not self.is_finished and self.run.is_live(self.now)

    @property
    def state(self) -> str:
        """In words."""
        return "finished" if self.is_finished else _words(self.run, self.now)

    @property
    def left(self) -> int:
        """Rows that are neither committed nor done in flight."""
        in_flight = sum(self.run.in_flight.values()) if self.is_live else 0
        return max(0, self.rows - self.tally.rows - in_flight)


def read_status(store: FeatureStore, name: str, now: float) -> PassStatus:
    """The status of a pass at the time `now` (Unix seconds), its receipts as the store first read them."""
    tally, receipts = Tally(), store.pass_receipts(name)
    for receipt in receipts.values():
        tally.add(live_part(receipt, store.dropped[name]))
    run = runs_of(read_events(store.layout, name))[-1]
    return PassStatus(
        name=name,
        shards=len(store.shards),
        rows=sum(record.rows for record in store.shards),
        tally=tally,
        run=run,
        now=now,
        quarantined={shard: why for shard, why in run.quarantined.items() if shard not in receipts},
        prediction=read_prediction(store.layout, name),
    )


def has_begun(layout: Layout, name: str) -> bool:
    """Whether a run has logged any event of the pass."""
    return next(iter(read_events(layout, name)), None) is not None


def state_of(layout: Layout, name: str, now: float) -> str:
    """What the last run over a pass is doing, in words."""
    return _words(runs_of(read_events(layout, name))[-1], now)


def _words(run: RunState, now: float) -> str:
    if not run.id:
        return "no run has started"
    ago = f"{duration(max(0.0, now - run.last))} ago"
    if run.ended:
        return f"stopped {ago} by {run.why}" if run.why else f"ended {ago}"
    if run.is_live(now):
        return f"running, last sign {ago}" if run.workers else f"starting, last sign {ago}"
    return f"no sign for {duration(now - run.last)}: probably dead"
