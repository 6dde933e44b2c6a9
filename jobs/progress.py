"""Progress for people (a bar with rate and time left) and for logs (a plain line now and then)."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from jobs.console import console, say
from pipeline.executors.ledger import Failure
from pipeline.run import Extraction
from schemas.records import Receipt

LOG_INTERVAL_S = 10.0


class ExtractionProgress:
    """Observes the receipts of a run: shards, rates, time left, live workers, retries."""

    def __init__(self, total_rows: int) -> None:
        self._total_rows, self._rows, self._nnz = total_rows, 0, 0
        self._shards = self._total = self._workers = self._retries = 0
        self._began = self._logged = time.monotonic()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]extract"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("extract", total=None, rates="starting the model")

    def __enter__(self) -> ExtractionProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, extraction: Extraction) -> None:
        """Shards that were committed before are done from the start."""
        self._total, self._shards = extraction.total, extraction.skipped
        self._total_rows -= sum(receipt.rows for receipt in extraction.receipts.values())
        self._bar.update(self._task, total=extraction.total, completed=extraction.skipped)

    def on_event(self, **event: Any) -> None:
        """Count workers and retries; tell what a person should know."""
        if event["event"] == "ready":
            self._workers += 1
            self._began = min(self._began, time.monotonic()) if self._rows else time.monotonic()
        elif event["event"] == "worker_replaced":
            self._workers = max(0, self._workers - 1)
        elif event["event"] == "retry":
            self._retries += 1
        if event["event"] in ("retry", "quarantined", "worker_replaced", "waiting"):
            told = ", ".join(f"{key} {value}" for key, value in event.items() if key != "event")
            say(f"[yellow]{event['event'].replace('_', ' ')}[/]: {escape(told)}")
        self._show()

    def observe(self, outcome: Receipt | Failure) -> None:
        """One more shard ended."""
        if isinstance(outcome, Receipt):
            self._shards += 1
            self._rows += outcome.rows
            self._nnz += sum(site.nnz for site in outcome.sites.values())
        self._show()

    def _show(self) -> None:
        rates = self._rates()
        self._bar.update(self._task, completed=self._shards, rates=rates)
        now = time.monotonic()
        if not console.is_terminal and (now - self._logged > LOG_INTERVAL_S or self._shards == self._total):
            self._logged = now
            say(f"extract: {self._shards}/{self._total} shards, {rates}")

    def _rates(self) -> str:
        """Rates over this run, and the time left at that rate."""
        if not self._rows:
            return f"{self._workers} workers ready" if self._workers else "starting the model"
        seconds = max(time.monotonic() - self._began, 1e-9)
        left = (self._total_rows - self._rows) * seconds / self._rows
        retries = f", {self._retries} retries" if self._retries else ""
        return (
            f"{self._rows / seconds:,.0f} tokens/s, {self._nnz / seconds:,.0f} nonzeros/s, "
            f"{left:.0f} s left, {self._workers} workers{retries}"
        )
