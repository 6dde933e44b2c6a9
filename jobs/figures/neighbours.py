"""The neighbour graph of one feature."""

from __future__ import annotations

from math import cos, pi, sin
from typing import Any

import polars as pl
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure

from jobs.figures.names import feature_names
from jobs.figures.style import COLOUR_MAP, INK, SIZE, VERMILION, canvas, colour_bar
from schemas.sentences import several

LABELS = {
    "jaccard": "Jaccard index of rows",
    "npmi": "NPMI",
    "phi": "phi (correlation of active or not)",
    "conditional": "share of the feature's rows in which the neighbour fires",
    "cosine": "cosine of decoder rows",
}
LONGEST, NARROW = 40, 20
"""Characters of the feature's name, and of a neighbour's."""
LARGE = (9.0, 7.0)
DARK_IS_HIGH = f"{COLOUR_MAP}_r"

WIDTH = 1.9
"""Of the ellipse on which neighbours lie, in its heights: the figure is wider than high."""


def draw_neighbours(own: pl.DataFrame, links: pl.DataFrame, site: str, feature: int, by: str) -> Figure:
    """A feature, its neighbours around it, and what is neighbour to what among them.

    `own` and `links` are rows of the table `neighbours` with this `by` (or of `decoder_neighbours`): those of
    the feature, and those of its neighbours that lead to another of them. Lines are wide and dark where the
    value is high, dots large where a neighbour fires often; neighbours of neighbours lie side by side.
    """
    facts = [several(own.height, "neighbour")]
    if "n_a" in own.columns:
        facts.append(f"active in {several(own['n_a'][0], 'row')}")
        facts.append("larger dots fire in more rows")
    facts = [f"“{name}”" for name in feature_names([feature], LONGEST) if name] + facts
    others = own["neighbour"].to_list()
    names = dict(zip(others, feature_names(others, NARROW), strict=True))
    size = LARGE if any(names.values()) else SIZE  # names take a second line of each label
    figure, axes = canvas(f"Neighbours of feature {feature}", site, *facts, size=size)
    axes.set_axis_off()
    value = dict(own.select("neighbour", by).iter_rows())
    # of the two directions of a pair the stronger one
    between: dict[tuple[int, int], float] = {}
    for a, b, strength in links.select("feature", "neighbour", by).iter_rows():
        pair = min(a, b), max(a, b)
        between[pair] = max(strength, between.get(pair, strength))
    # on an ellipse, from the top, clockwise
    order = _ring_order(list(value), between)
    angles = (pi / 2 - 2 * pi * n / len(order) for n in range(len(order)))
    place = {other: (WIDTH * cos(angle), sin(angle)) for other, angle in zip(order, angles, strict=True)}
    scale = Normalize(*_span([*value.values(), *between.values()]))
    for (a, b), strength in sorted(between.items(), key=lambda link: link[1]):
        axes.plot(*zip(place[a], place[b], strict=True), **_line(strength, scale, 0.45), zorder=1)
    for other, strength in value.items():
        axes.plot(*zip((0, 0), place[other], strict=True), **_line(strength, scale, 1), zorder=2)
    sizes = _sizes(own)
    for other, (x, y) in place.items():
        axes.scatter([x], [y], s=sizes[other], color=INK, zorder=3, linewidths=0)
        side = "left" if x > 0.3 else "right" if x < -0.3 else "center"
        text = f"{other} · {value[other]:.2f}" + (f"\n{names[other]}" if names[other] else "")
        axes.text(x * 1.09, y * 1.13, text, ha=side, va="center", fontsize=9, color=INK, zorder=4)
    axes.scatter([0], [0], s=160, color=VERMILION, zorder=3, linewidths=0)
    axes.text(
        0,
        0.11,
        str(feature),
        ha="center",
        va="bottom",
        fontweight="bold",
        color=VERMILION,
        zorder=5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )
    axes.set_xlim(-WIDTH * 1.35, WIDTH * 1.35)
    axes.set_ylim(-1.22, 1.22)
    colour_bar(figure, ScalarMappable(scale, DARK_IS_HIGH), ax=axes, label=LABELS[by], pad=0.01, shrink=0.85)
    return figure


def _ring_order(others: list[int], between: dict[tuple[int, int], float]) -> list[int]:
    """Neighbours in an order in which each is followed by what it is most linked to; the first by rank."""
    order, left = others[:1], others[1:]
    while left:
        last = order[-1]
        link = [between.get((min(last, other), max(last, other)), float("-inf")) for other in left]
        order.append(left.pop(link.index(max(link))))
    return order


def _span(values: list[float]) -> tuple[float, float]:
    """Ends of the colour scale, apart even where all values are equal."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.01, high + 0.01)


def _line(strength: float, scale: Normalize, alpha: float) -> dict[str, Any]:
    share = float(scale(strength))
    return {"color": to_hex(colormaps[DARK_IS_HIGH](share)), "linewidth": 0.6 + 3 * share, "alpha": alpha}


def _sizes(own: pl.DataFrame) -> dict[int, float]:
    """Areas of dots, by the logarithm of the rows in which a neighbour fires."""
    if "n_b" not in own.columns:
        return dict.fromkeys(own["neighbour"].to_list(), 50.0)
    rows = own["n_b"].log(10)
    low, high = _span(rows.to_list())
    return dict(zip(own["neighbour"], 20 + 90 * (rows - low) / (high - low), strict=True))
