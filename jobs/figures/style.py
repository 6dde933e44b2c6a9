"""The look of every figure, in one place: canvas, colours (Okabe and Ito 2008, viridis), titles, axes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import (
    FuncFormatter,
    LogFormatterSciNotation,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    StrMethodFormatter,
)

from jobs.figures.fonts import PLAIN, legible
from schemas.values import F64

BLUE, VERMILION, GREEN = "#0072B2", "#D55E00", "#009E73"
INK, SOFT, FAINT = "#222222", "#666666", "#E4E4E4"
COLOUR_MAP = "viridis"

SIZE = (7.2, 4.5)
DPI = 200
LINE_IN = 0.2
"""Height of a line of text, in inches."""
LINE_LENGTH = 90
NARROW = 300
"""Ratio of largest to smallest below which a log axis shows more than powers of ten."""

STYLE: Any = {
    "font.family": PLAIN,
    "text.parse_math": False,  # a dollar of the data begins no formula
    "text.usetex": False,
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "text.color": INK,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",  # text stays text: it can be searched, and the file is small
    "svg.hashsalt": "latentlake",  # ids in the file do not change from run to run
}

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class PowersOfTen(LogFormatterSciNotation):
    """Labels of a log axis as plain text, 10⁻³ or 2×10⁻³: matplotlib's own are formulas."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label at `x`, empty where there is none."""
        text = super().__call__(x, pos).removeprefix("$\\mathdefault{").removesuffix("}$")
        power = re.sub(r"\^\{(-?\d+)\}", lambda match: match[1].translate(_RAISED), text)
        return power.replace("\\times", "×").replace("-", "−")


class _SmallCounts(PowersOfTen):
    """2 for 2×10⁰ and 30 for 3×10¹, where a log axis is so short that it names what lies between."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """The label at `x`, empty where there is none."""
        text = super().__call__(x, pos)
        return f"{x:,.12g}" if text and 1 <= x < 10_000 else text


def canvas(title: str, site: str, *facts: str, size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """A figure with one plot, as `sheet` makes it."""
    figure = sheet(title, site, *facts, size=size)
    return figure, figure.add_subplot()


def sheet(title: str, site: str, *facts: str, size: tuple[float, float] = SIZE) -> Figure:
    """An empty figure; flush left above all plots a bold title, and the site and facts on softer lines."""
    figure = Figure(figsize=size, dpi=DPI)
    below = 0.975 - 1.45 * LINE_IN / size[1]
    figure.text(0.015, 0.975, legible(title), ha="left", va="top", fontsize=14, fontweight="bold")
    figure.text(0.015, below, "", ha="left", va="top", fontsize=10, color=SOFT)
    figure.set_layout_engine("constrained", w_pad=0.1)
    half, parts = LINE_LENGTH // 2 - 1, [legible(part) for part in (site, *facts)]
    # what is longer than a line loses its middle: names of models and paths differ at their ends
    _put_facts(figure, [p if len(p) <= LINE_LENGTH else f"{p[:half]}…{p[-half:]}" for p in parts])
    return figure


def add_fact(figure: Figure, fact: str) -> None:
    """Another fact on a figure that `sheet` made, once."""
    if len(figure.texts) > 1 and fact not in (facts := figure.texts[1].get_text()):
        _put_facts(figure, [*facts.split("\n"), fact])


def _put_facts(figure: Figure, facts: list[str]) -> None:
    """Facts below the title, joined by dots into lines, and the plots below them."""
    lines = facts[:1]
    for fact in facts[1:]:
        longer = f"{lines[-1]} · {fact}"
        lines = [*lines[:-1], longer] if len(longer) <= LINE_LENGTH else [*lines, fact]
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine), "`sheet` sets it"
    figure.texts[1].set_text("\n".join(lines))
    engine.set(rect=(0, 0, 1, 0.96 - (1.45 + len(lines)) * LINE_IN / figure.get_size_inches()[1]))


def empty_plot(axes: Axes, text: str) -> Figure:
    """Write on an empty plot why it is empty; its figure."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=SOFT, transform=axes.transAxes, fontsize=12)
    figure = axes.get_figure()
    assert isinstance(figure, Figure), "`canvas` and `sheet` make no others"
    return figure


def colour_bar(figure: Figure, shown: Any, **options: Any) -> Colorbar:
    """What the colours of `shown` stand for, without a frame."""
    bar = figure.colorbar(shown, **options)
    bar.outline.set_visible(False)
    return bar


def mark(axes: Axes, x: float, label: str) -> None:
    """A dashed vertical line at `x`, its label next to it in room made above the data."""
    axes.margins(y=0.16)
    axes.axvline(x, color=VERMILION, linestyle=(0, (5, 3)), linewidth=1.6)
    left = axes.transAxes.inverted().transform(axes.transData.transform((x, 0)))[0] < 0.6
    axes.annotate(
        label,
        (x, 0.985),
        xycoords=axes.get_xaxis_transform(),
        xytext=(6 if left else -6, 0),
        textcoords="offset points",
        ha="left" if left else "right",
        va="top",
        color=VERMILION,
        fontweight="bold",
        fontsize=10.5,
    )


def powers_of_ten(axis: XAxis | YAxis) -> None:
    """Labels of an axis that is logarithmic already."""
    axis.set_major_formatter(PowersOfTen())
    axis.set_minor_formatter(PowersOfTen())


def log_counts(axis: XAxis | YAxis) -> None:
    """A log axis of numbers of things."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    powers_of_ten(axis)
    axis.set_minor_formatter(_SmallCounts())


def log_axis(axis: XAxis | YAxis, values: F64) -> None:
    """A log axis over positive values: powers of ten; where they would be few, 1, 2, 5 … in plain numbers."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    powers_of_ten(axis)
    if (ratio := values.max() / values.min()) < NARROW:
        subs = (1, 2, 5) if ratio > 10 else (1, 1.5, 2, 3, 5, 7)
        axis.set_major_locator(LogLocator(subs=subs) if ratio > 2 else MaxNLocator(6))
        if ratio <= 2:
            axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
        axis.set_minor_formatter(NullFormatter())


def name_some(axis: XAxis | YAxis, names: Sequence[str], most: int, label: str, **text: Any) -> None:
    """Ticks at places 0 .. n - 1, with the names of as many, at regular intervals, as there is room for."""
    step = max(1, -(-len(names) // most))
    axis.set_ticks(range(0, len(names), step), list(names[::step]), **text)
    axis.set_label_text(label if step == 1 else f"{label} (1 in {step} is named)")


def whole_numbers(axis: XAxis | YAxis) -> None:
    """Ticks at round whole numbers, thousands set apart."""
    axis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def decimal(value: float) -> str:
    """A mean of counts: one decimal, or two digits where it is below 1."""
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def share(part: int, whole: int) -> str:
    """A percentage with as many digits as it needs."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.2g} %"
