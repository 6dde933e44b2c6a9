"""The results of a benchmark, for people and for machines."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table


@dataclass(frozen=True)
class Section:
    """One table: a title that says what was measured, columns, and rows of text; `raw` holds the numbers."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    raw: Sequence[Mapping[str, Any]]

    def table(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title)
        for place, column in enumerate(self.columns):
            table.add_column(column, justify="right" if place else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a page."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return f"{self.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def write(self, out: Path) -> None:
        """NAME.json (as in docs/measurements, and `raw`) and NAME.md in the folder `out`."""
        out.mkdir(parents=True, exist_ok=True)
        content = {"caption": self.title, "columns": self.columns, "rows": self.rows, "raw": self.raw}
        (out / f"{self.name}.json").write_text(json.dumps(content, indent=1))
        (out / f"{self.name}.md").write_text(self.markdown())


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call by name, `rounds` of them after one that is not kept; every round calls all."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            took = seconds_of(call)
            if turn:
                seconds[name].append(took)
    return seconds


def ratio(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float, float]:
    """How many times as fast: of the sums of seconds, and the lowest and highest of the rounds."""
    rounds = [s / f for s, f in zip(slow, fast, strict=True)]
    return sum(slow) / sum(fast), min(rounds), max(rounds)


def rate(n: int, seconds: Sequence[float]) -> float:
    """`n` things a second, by the median."""
    return n / statistics.median(seconds)
