"""Names of features as they are printed: one line, every character visible, cut where there is no room."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from jobs.terminal.strips import MARKS, translated
from pipeline.store.derived.names import FeatureNames

NARROW, WIDE = 32, 80
"""Characters of a name in a table of numbers or a figure, and where it has a line for itself."""

_MARKS = {code: mark for code, mark in MARKS.items() if code != ord(" ")}


def one_line(text: str, most: int = WIDE) -> str:
    """The text with marks for line ends, tabs and characters not seen, at most `most` characters of it."""
    line = translated(text, _MARKS)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def labelled(names: FeatureNames, feature: int, most: int = NARROW) -> str:
    """The number and the name of a feature, in a sentence; not escaped."""
    name = one_line(names.name(feature), most)
    return f"{feature} “{name}”" if name else f"{feature}"


def any_named(names: FeatureNames, features: Iterable[int]) -> bool:
    """Whether one of some features has a name, so that a table has a column of them."""
    return any(map(names.name, features))


def name_cell(names: FeatureNames, feature: int, most: int = NARROW) -> Text:
    """The name in a column of a table: one line, which gives way where the terminal is narrow."""
    return Text(one_line(names.name(feature), most), no_wrap=True, overflow="ellipsis")
