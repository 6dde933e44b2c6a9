"""What `--json` prints: the rows of a view as one JSON value on standard output, and all else on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import polars as pl

from jobs.terminal.console import console


@contextmanager
def lines_on_stderr() -> Iterator[None]:
    """What jobs print for people goes to standard error while the block runs."""
    before, console.stderr = console.stderr, True
    try:
        yield
    finally:
        console.stderr = before


def print_json(value: Any) -> None:
    """Print a value as JSON: a frame as a list of its rows, a number that is not finite as null."""
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """The value of types that JSON has."""
    if isinstance(value, pl.DataFrame):
        return [plain(row) for row in value.iter_rows(named=True)]
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)
