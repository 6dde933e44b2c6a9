"""Progress of an extraction: shards, rates, time left, live workers, retries."""

from __future__ import annotations

import time
from typing import Any

from rich.markup import escape

from jobs.terminal.console import say, say_cpu
from jobs.terminal.progress import Clock, Meter, Pace, duration
from pipeline.run import Extraction
from schemas.sentences import several

REPORTED = ("retry", "quarantined", "worker_replaced", "waiting", "twin")
"""Events that a person should know of."""


class ExtractionProgress:
    """Shows a run's state on `meter` after each event; rows of shards in flight count as they are done.

    `why_cpu`: why model.device auto is the CPU, if it is; said where there is something to do.
    """

    def __init__(self, why_cpu: str | None = None, clock: Clock = time.monotonic) -> None:
        self._why_cpu, self._clock = why_cpu, clock
        self.meter, self._pace = Meter(clock=clock), Pace(clock)

    def begin(self, extraction: Extraction) -> None:
        """Shards that were committed before are done from the start."""
        self._extraction, self._state = extraction, extraction.state
        if self._why_cpu is not None and extraction.skipped < extraction.total:
            say_cpu(self._why_cpu)
        self._total_rows = extraction.rows - extraction.tally.rows
        self.meter.begin("extract", self._total_rows)

    def on_event(self, **event: Any) -> None:
        """Print what a person should know; the extraction's state holds the event already."""
        kind = event["event"]
        if kind == "ready" and not self._state.rows:
            self._pace = Pace(self._clock)  # loading is not work
        if kind in REPORTED:
            details = ", ".join(f"{key} {value}" for key, value in event.items() if key != "event")
            say(f"[yellow]{kind.replace('_', ' ')}[/]: {escape(details)}")
        shards = self._extraction.skipped + self._state.shards
        self.meter.show(self._state.rows_done, f"{shards}/{self._extraction.total} shards, {self._rates()}")

    def _rates(self) -> str:
        """Rates over the last minutes, and the time left at that rate."""
        state, done = self._state, self._state.rows_done
        workers = several(len(state.workers), "worker")
        if not done:
            return f"{workers} ready" if state.workers else "starting the model"
        # Tokens are paced; nonzeros are those of the shards done, at the same pace.
        rate = self._pace.update(done)
        parts = [f"{rate:,.0f} tokens/s"]
        if state.nnz:
            parts.append(f"{rate * state.nnz / state.rows:,.0f} nonzeros/s")
        if rate:
            parts.append(f"{duration((self._total_rows - done) / rate)} left")
        return ", ".join([*parts, workers, *([f"{state.retries} retries"] if state.retries else [])])
