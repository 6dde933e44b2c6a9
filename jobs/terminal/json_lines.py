"""Files of JSON lines, plain or packed with gzip, as commands import them."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from schemas.errors import InputError
from schemas.record import parse_json

LONGEST_LINE = 1 << 24
"""Bytes: what packs small may be large."""


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Each line that is not blank: the place where it stands (for messages), and what it holds.

    A name that ends in .gz is unpacked. InputError where the file cannot be read, or a line is not JSON.
    """
    try:
        with cast("BinaryIO", gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
            yield from json_lines(file, str(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a file of JSON lines") from None


def json_lines(file: BinaryIO, name: str) -> Iterator[tuple[str, Any]]:
    """The same of an open file, which messages call `name`."""
    number = 0
    try:
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            where = f"line {number:,} of {name}"
            if len(line) > LONGEST_LINE:
                raise InputError(f"{where} has more than {LONGEST_LINE:,} bytes: give JSON lines")
            if line.strip():
                yield where, _parsed(line, where)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{name} is damaged after line {number:,} ({error}): get it again") from None


def _parsed(line: bytes, where: str) -> Any:
    try:
        return parse_json(line)
    except ValueError:
        raise InputError(f"{where} is not JSON: give a file with a JSON object in each line") from None
