"""Names of features as they are printed: one line, every character visible, cut where there is no room."""

from __future__ import annotations

from jobs.terminal.strips import MARKS, translated

NARROW, WIDE = 32, 80
"""Characters of a name in a table of numbers or a figure, and where it has a line for itself."""

_MARKS = {code: mark for code, mark in MARKS.items() if code != ord(" ")}


def one_line(text: str, most: int = WIDE) -> str:
    """The text with marks for line ends, tabs and characters not seen, at most `most` characters of it."""
    line = translated(text, _MARKS)
    return line if len(line) <= most else f"{line[: most - 1]}…"
