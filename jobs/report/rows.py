"""Rows that a page has by the hundred, as lists that `static/pages.js` makes elements of.

A token is its place in the list of texts that the page has, or its text. What comes from the corpus is made
visible by the source, or here; it becomes text in the browser, never HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.report.page import number, percent, whole
from jobs.report.source import Source
from jobs.report.strips import visible
from pipeline.store.reading.windows import LABEL

Row = list[Any]


def example(source: Source, window: Mapping[str, Any]) -> Row:
    """One example: its activation, its strip, and where it stands.

    Of the strip: tokens, places where the feature is active, activations there, the place that fires (-1:
    none), and whether the context begins (1) and ends (2) with it, as a sum. Last comes `Source.address`.
    """
    values, firing = window["values"], window["firing"]
    if source.averaged:
        values, firing = [0.0] * len(values), None
    tokens, values, firing = source.pieces(window["token_ids"], values, firing)
    active = [place for place, value in enumerate(values) if value]
    labels = [str(window[name]) for name in window if name.startswith(LABEL) and window[name] is not None]
    where = f"context {window['context']}"
    where += "" if source.averaged else f", position {window['position']}"
    return [
        number(window["activation"]),
        tokens,
        active,
        [short(values[place]) for place in active],
        -1 if firing is None else firing,
        bool(window["from_start"]) + 2 * bool(window["to_end"]),
        " · ".join(map(visible, [*labels, where])),
        *source.address(window),
    ]


def short(value: float) -> float | int:
    """An activation with four digits."""
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() else rounded


def neighbour(source: Source, row: Mapping[str, Any], by: str) -> Row:
    """One neighbour: its number and tokens, the measure it was chosen by, and the rows both are active in."""
    feature, both = row["neighbour"], row.get("n_both")
    cells = [feature, source.named(feature), number(row[by])]
    return cells if both is None else [*cells, whole(both)]


def match(source: Source, table: str, row: Mapping[str, Any]) -> Row:
    """One match in another site, in a table of matches."""
    is_assigned = "yes" if row["assigned"] else ""
    return [source.matched(table, row["match"]), number(row["cosine"]), number(row["jaccard"]), is_assigned]


def label(row: Mapping[str, Any]) -> Row:
    """One value of a label."""
    counts, shares = map(whole, (row["rows"], row["n_active"])), (row["frequency"], row["difference"])
    return [visible(str(row["value"])), *counts, *map(percent, shares), number(row["z"]), number(row["q"])]


def trend(row: Mapping[str, Any]) -> Row:
    """The trend over one numeric label."""
    numbers = (number(row[name]) for name in ("slope", "se", "z", "q"))
    return [visible(str(row["label"])), whole(row["documents"]), *numbers]


def is_clear(row: Mapping[str, Any]) -> bool:
    """Whether a difference or a trend is clear at 5 %."""
    return row["q"] is not None and bool(row["q"] < 0.05)
