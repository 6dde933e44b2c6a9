"""Progress for people: a bar with rate and time left on a terminal, in logs a plain line now and then.

What is over within two seconds shows nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jobs.terminal.console import console, say

LOG_INTERVAL_S = 10.0
QUIET_S = 2.0
WINDOW_S = 120.0

T = TypeVar("T")
Clock = Callable[[], float]


@contextmanager
def counting(what: str, total: int | None = None, unit: str = "") -> Iterator[Callable[[int], None]]:
    """Progress of one job while the block runs; the function yielded takes how many more units are done."""
    with Meter() as meter:
        yield meter.begin(what, total, unit)


def track(items: Iterable[T], what: str, total: int | None = None, unit: str = "") -> Iterator[T]:
    """The items as they come, one unit each, with progress."""
    with counting(what, total, unit) as advance:
        for item in items:
            yield item
            advance(1)


class Pace:
    """The rate of a count that grows, over the last two minutes."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock, self._seen = clock, deque([(clock(), 0.0)])

    def update(self, count: float) -> float:
        """Take in what the count is now; units a second."""
        now = self._clock()
        while len(self._seen) > 1 and self._seen[1][0] <= now - WINDOW_S:
            self._seen.popleft()
        if now - self._seen[-1][0] >= 1:
            self._seen.append((now, count))
        began, before = self._seen[0]
        return max(0.0, count - before) / max(now - began, 1e-9)  # a lost worker's rows are undone


class Meter:
    """A line that is kept up to date on a terminal, or printed again every ten seconds in a log.

    With the name of a `command` its steps are shown as they begin, else what lasts for two seconds.
    """

    def __init__(self, command: str = "", clock: Clock = time.monotonic) -> None:
        self._command, self._what, self._clock = command, "", clock
        self._reported = clock()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[progress_text]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, progress_text="", visible=bool(command))
        self._timer = threading.Timer(QUIET_S, self._bar.update, (self._task,), {"visible": True})
        self._timer.daemon = True

    def __enter__(self) -> Meter:
        self._bar.start()
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._bar.stop()

    def begin(self, what: str, total: int | None = None, unit: str = "") -> Callable[[int], None]:
        """Begin a step; the function returned takes how many more units are done."""
        done, pace = 0, Pace(self._clock)
        self._what, self._reported = what, self._clock()
        self._bar.reset(self._task, description=escape(what), total=total, progress_text="")
        if self._command and not console.is_terminal:
            say(escape(f"{self._command}: {what}"))

        def advance(n: int) -> None:
            nonlocal done
            done += n
            self.show(done, progress_text(done, total, unit, pace.update(done)))

        return advance

    def show(self, done: float, text: str) -> None:
        """How far the step is, in its units and in words."""
        self._bar.update(self._task, completed=done, progress_text=text)
        now = self._clock()
        if not console.is_terminal and now - self._reported > LOG_INTERVAL_S:
            self._reported = now
            say(escape(": ".join(part for part in (self._command, self._what, text) if part)))


def progress_text(done: int, total: int | None, unit: str, rate: float) -> str:
    """A count, its rate, and the time left."""
    share = f"{done:,}/{total:,}" if total else f"{done:,}"
    left = f", {duration((total - done) / rate)} left" if total and rate and total > done else ""
    return f"{' '.join((share, unit)).strip()}, {rate:,.3g} per second{left}"


def duration(seconds: float) -> str:
    """A time in words: 45 s, 12 min, 3.4 h, 2.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def size(n: float) -> str:
    """Bytes in words: 512 B, 135 kB, 4.21 GB (powers of 1,000)."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 999.5 or unit == "TB":
            return f"{n:.3g} {unit}" if n < 999.5 else f"{n:,.0f} {unit}"
        n /= 1000
    raise AssertionError
