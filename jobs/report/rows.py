"""Rows that a page has by the hundred, as HTML: built as strings, for a template takes twice as long.

What comes from the corpus is escaped by `Work` and `strips`, or here; the rest are numbers. End tags that
HTML lets one leave out are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from jobs.report.page import number, percent, whole
from jobs.report.strips import strip, visible
from jobs.report.work import Work
from pipeline.store.reading.windows import LABEL


def example(work: Work, window: Mapping[str, Any], most: float) -> str:
    """One example: its activation, its strip, and where it stands."""
    values, firing = window["values"], window["firing"]
    if work.averaged:
        values, firing = [0.0] * len(values), None
    tokens = strip(*work.shown(window["token_ids"], values, firing), most)
    labels = [str(window[name]) for name in window if name.startswith(LABEL) and window[name] is not None]
    where = f"context {window['context']}"
    where += "" if work.averaged else f", position {window['position']}"
    return (
        f"<li><span class=value>{number(window['activation'])}</span><p class=strip dir=auto>"
        f"{'' if window['from_start'] else '…'}{tokens}{'' if window['to_end'] else '…'}</p>"
        f"<span class=where>{escape(visible(' · '.join([*labels, where])))}</span>"
    )


def neighbour(work: Work, row: Mapping[str, Any], by: str) -> str:
    """One neighbour: its link and tokens, the measure it was chosen by, and the rows both are active in."""
    feature, both = row["neighbour"], row.get("n_both")
    cells = f"<tr><td>{work.link(feature, '../')}<td>{work.fires_on(feature)}<td class=n>{number(row[by])}"
    return cells if both is None else f'{cells}<td class="n soft">{whole(both)}'


def label(row: Mapping[str, Any]) -> str:
    """One value of a label; where the difference is clear at 5 % it stands out."""
    counts, shares = map(whole, (row["rows"], row["n_active"])), (row["frequency"], row["difference"])
    return _tested(row, row["value"], *counts, *map(percent, shares), number(row["z"]), number(row["q"]))


def trend(row: Mapping[str, Any]) -> str:
    """The trend over one numeric label; where it is clear at 5 % it stands out."""
    numbers = (number(row[name]) for name in ("slope", "se", "z", "q"))
    return _tested(row, row["label"], whole(row["documents"]), *numbers)


def _tested(row: Mapping[str, Any], name: str, *cells: str) -> str:
    clear = row["q"] is not None and row["q"] < 0.05
    html = "".join(f"<td class=n>{cell}" for cell in cells)
    return f"<tr{' class=clear' if clear else ''}><td><bdi>{escape(visible(name))}</bdi>{html}"


def logit(work: Work, token: int, value: float) -> str:
    """One token and its logit."""
    return f"<tr><td>{work.tokens([token])}<td class=n>{number(value)}"


def joined(rows: Iterable[str]) -> Markup:
    """Rows one below the other."""
    return Markup("\n".join(rows))  # noqa: S704 - made of the rows above


def cut(rows: Sequence[str], shown: int) -> tuple[Markup, Markup, int]:
    """The rows that are shown at once, those that are folded away, and how many these are."""
    return joined(rows[:shown]), joined(rows[shown:]), max(0, len(rows) - shown)
