"""What happens to a run: folded into its state, kept in the pass's event log, passed to an observer, logged.

Events of one run carry its id in `run`. Heartbeats reach the observer at once, the log once a minute.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pipeline.monitor import logs
from pipeline.monitor.events import EventLog
from pipeline.monitor.heartbeat import HEARTBEAT_LOGGED_S, OnEvent
from pipeline.monitor.run_state import RunState
from schemas import __version__
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import Plan, Receipt

SIGNAL_CODES = 128
WARNINGS = {"retry", "quarantined", "worker_replaced", "waiting", "oom"}


class Journal:
    """Takes in the events of one run."""

    def __init__(self, log: EventLog, on_event: OnEvent, state: RunState) -> None:
        self._log, self._on_event, self._state = log, on_event, state
        self._run, self._beat = uuid.uuid4().hex[:12], float("-inf")

    def __call__(self, **event: Any) -> None:
        """One thing that happened; `event` says what."""
        # The state comes first and the observer last: what the observer prints is read from the state.
        kept = {"time": round(time.time(), 3), **event, "run": self._run}
        self._state.take(kept)
        if event["event"] != "heartbeat":
            self._keep(kept)
        elif time.monotonic() - self._beat >= HEARTBEAT_LOGGED_S:
            self._beat = time.monotonic()
            self._keep(kept)
        self._on_event(**event)

    def committed(self, receipt: Receipt) -> None:
        """A shard was committed."""
        self(
            event="committed",
            shard=receipt.shard,
            node=receipt.environment.get("host"),
            attempt=receipt.attempt,
            rows=receipt.rows,
            nnz=receipt.nnz,
            bytes=receipt.size,
            seconds=round(receipt.work_seconds, 3),
        )

    def _keep(self, event: dict[str, Any]) -> None:
        with suppress(OSError, InputError):  # a full disk ends a run by its shards, not by its log
            self._log.log(**event)
        level = logging.WARNING if event["event"] in WARNINGS else logging.INFO
        fields = {name: value for name, value in event.items() if name not in ("event", "time", "run")}
        logs.log_event(event["event"], level, run=self._run, **fields)


@contextmanager
def journal(
    layout: Layout, plan: Plan, on_event: OnEvent, state: RunState, **begun: Any
) -> Iterator[Journal]:
    """A run's events, from `begin` with what is planned to `end` with what was done, or with the error."""
    began = time.monotonic()
    with EventLog(layout, plan.pass_name) as log:
        events = Journal(log, on_event, state)
        place = {"node": socket.gethostname(), "pid": os.getpid(), "version": __version__}
        events(event="begin", plan=plan.hash, **place, **begun)
        why: str | None = None
        try:
            yield events
        except BaseException as error:
            why = f"{type(error).__name__}: {error}".rstrip(": ")
            # The commands end by SystemExit(128 + n) when they are sent signal n.
            code = error.code if isinstance(error, SystemExit) else None
            if isinstance(code, int) and code > SIGNAL_CODES:
                why = signal.Signals(code - SIGNAL_CODES).name
            raise
        finally:
            events(
                event="end",
                shards=state.shards,
                rows=state.rows,
                nnz=state.nnz,
                bytes=state.bytes,
                seconds=round(time.monotonic() - began, 3),
                why=why,
            )
