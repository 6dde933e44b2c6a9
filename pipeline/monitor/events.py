"""What happened to a pass, for people: one JSON object a line, with its `time` in Unix seconds.

A local store has one file, events.jsonl, to which lines are added. Object stores cannot append: there lines
are gathered, and put as a new object of the folder events/ every ten seconds, and when the log is closed.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.store.objects.verbs import listed, read_many, write_atomic
from schemas.errors import InputError
from schemas.layout import Layout, StorePath
from schemas.sentences import redacted

_PART_SECONDS = 10.0


class EventLog:
    """Keeps the events of a pass; used from several threads. Close it, or use it as a context."""

    def __init__(self, layout: Layout, pass_name: str, part_seconds: float = _PART_SECONDS) -> None:
        path = layout.events(pass_name)
        self._sink = (
            _File(path) if isinstance(path, Path) else _Parts(layout.event_parts(pass_name), part_seconds)
        )

    def log(self, **event: Any) -> None:
        """Keep one event; what JSON does not know is kept as its text."""
        line = json.dumps({"time": round(time.time(), 3), **event}, default=str)
        self._sink.write(redacted(line) + "\n")

    def close(self) -> None:
        """Bring the last events to the storage; the second call does nothing."""
        self._sink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_events(layout: Layout, pass_name: str) -> Iterator[dict[str, Any]]:
    """Every event of the pass, of each log in the order in which it came; also while a run is going.

    A line that a dying run left unfinished is passed over.
    """
    path, folder = layout.events(pass_name), layout.event_parts(pass_name)
    parts = [path] if path.exists() else []
    parts += sorted((part for part in listed(folder) if _is_part(part)), key=str)
    for data in read_many(parts):
        for line in data.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event


def _is_part(path: StorePath) -> bool:
    return path.suffix == ".jsonl" and not path.name.startswith(".")


class _File:
    """Lines added to a file, each by one write, so that the lines of two runs do not mix."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab+", buffering=0)
        if self._file.tell():
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")  # a run died within a line

    def write(self, line: str) -> None:
        self._file.write(line.encode())

    def close(self) -> None:
        self._file.close()


class _Parts:
    """Lines put as objects of a folder, named by the time of their first line, by a thread."""

    def __init__(self, folder: Any, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        self._lines: list[str] = []
        self._began = 0.0
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="latentlake-events", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        with self._lock:
            if not self._lines:
                self._began = time.time()
            self._lines.append(line)

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(self._seconds):
            self._put()
        self._put()
        if self._lines:
            warnings.warn(f"{len(self._lines)} events could not be put into {self._folder}", stacklevel=1)

    def _put(self) -> None:
        """Put what was gathered; what cannot be put is kept for the next time: no run ends for its log."""
        # The lock is not held while the storage is waited for, so that no writer of events waits for it.
        # Lines that come meanwhile are later ones: they stand behind those that have to be put again.
        with self._lock:
            lines, began, self._lines = self._lines, self._began, []
        if not lines:
            return
        try:
            part = self._folder / f"{began:017.6f}-{uuid.uuid4().hex[:8]}.jsonl"
            write_atomic(part, "".join(lines).encode())
        except (InputError, OSError):
            with self._lock:
                self._lines, self._began = lines + self._lines, began
