"""Progress of an extraction: shards, rates, time left, live workers, retries."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.markup import escape

from jobs.terminal.console import say
from jobs.terminal.progress import Clock, Meter, Pace, duration
from pipeline.run import Extraction
from schemas.records import Receipt
from schemas.sentences import several
from schemas.values import Failure

REPORTED = ("retry", "quarantined", "worker_replaced", "waiting", "twin")
"""Events that a person should know of."""


class ExtractionProgress:
    """Observes the events and receipts of a run; rows of shards in flight count as they are done."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock, self._meter, self._pace = clock, Meter(clock=clock), Pace(clock)
        self._shards = self._total = self._rows = self._total_rows = self._nnz = 0
        self._workers: set[str] = set()
        self._retries = 0
        self._in_flight: dict[str, int] = {}

    def __enter__(self) -> ExtractionProgress:
        self._meter.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._meter.__exit__(kind, error, trace)

    def begin(self, extraction: Extraction) -> None:
        """Shards that were committed before are done from the start."""
        self._shards, self._total = extraction.skipped, extraction.total
        self._total_rows = extraction.rows - extraction.tally.rows
        self._meter.begin("extract", self._total_rows)

    def on_event(self, **event: Any) -> None:
        """Count workers and retries; print what a person should know."""
        kind = event["event"]
        if kind == "ready":
            self._workers.add(event["slot"])
            if not self._rows:
                self._pace = Pace(self._clock)  # loading is not work
        elif kind == "worker_replaced":
            self._workers.discard(event["slot"])
        elif kind == "heartbeat":
            self._in_flight = event["in_flight"]
        self._retries += kind == "retry"
        if kind in REPORTED:
            details = ", ".join(f"{key} {value}" for key, value in event.items() if key != "event")
            say(f"[yellow]{kind.replace('_', ' ')}[/]: {escape(details)}")
        self._show()

    def observe(self, outcome: Receipt | Failure) -> None:
        """One more shard ended."""
        self._in_flight.pop(outcome.shard, None)
        if isinstance(outcome, Receipt):
            self._shards += 1
            self._rows += outcome.rows
            self._nnz += outcome.nnz
        self._show()

    def _show(self) -> None:
        done = self._rows + sum(self._in_flight.values())
        self._meter.show(done, f"{self._shards}/{self._total} shards, {self._rates(done)}")

    def _rates(self, done: int) -> str:
        """Rates over the last minutes, and the time left at that rate."""
        workers = several(len(self._workers), "worker")
        if not done:
            return f"{workers} ready" if self._workers else "starting the model"
        rate = self._pace.update(done)
        parts = [f"{rate:,.0f} tokens/s"]
        if self._nnz:
            parts.append(f"{rate * self._nnz / self._rows:,.0f} nonzeros/s")
        if rate:
            parts.append(f"{duration((self._total_rows - done) / rate)} left")
        return ", ".join([*parts, workers, *([f"{self._retries} retries"] if self._retries else [])])
