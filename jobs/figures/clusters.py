"""The map of features: by cluster, and by how often they fire."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jobs.figures.fonts import cut, legible
from jobs.figures.style import COLOUR_MAP, INK, canvas, colour_bar, empty_plot, log_axis
from schemas.sentences import several

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Of the largest clusters (Okabe and Ito 2008, without its yellow, which white drowns)."""

OTHERS = "#BBBBBB"
NUMBERED = 60
"""Clusters whose number is written into the map, at most."""

NAME_LENGTH = 26
SMALL_POINTS = 2000
"""Features from which on points are small."""


def draw_map_by_cluster(places: pl.DataFrame, site: str) -> Figure:
    """Each feature at its place; the largest clusters in colour, all of them by number."""
    figure, axes = canvas("Features and their clusters", site, *_facts(places))
    if places.is_empty():
        return empty_plot(axes, "no feature has a position")
    # clusters are numbered by size: from the number of colours on they are grey, as without one
    clusters = places["cluster"].fill_null(len(COLOURS)).to_numpy()
    _scatter(axes, places.filter(clusters >= len(COLOURS)), color=OTHERS)
    handles, shown = [], 0
    for number, colour in enumerate(COLOURS):
        if not (members := places.filter(pl.col("cluster") == number)).is_empty():
            _scatter(axes, members, color=colour)
            shown += members.height
            name = cut(legible(members["name"][0] or ""), NAME_LENGTH)
            handles.append(_handle(colour, f"{number}  {name} ({members.height:,})"))
    if shown < places.height:
        handles.append(_handle(OTHERS, "others"))
    _numbers(axes, places)
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return figure


def draw_map_by_density(places: pl.DataFrame, site: str) -> Figure:
    """Each feature at its place, in the colour of its number of active rows."""
    figure, axes = canvas("Dense and rare features on the map", site, *_facts(places))
    if places.is_empty():
        return empty_plot(axes, "no feature has a position")
    n_active = places["n_active"].to_numpy()
    low, high = float(n_active.min()), float(n_active.max())
    norm = LogNorm(low, high if high > low else 2 * low)
    points = _scatter(axes, places.sort("n_active"), c=np.sort(n_active), cmap=COLOUR_MAP, norm=norm)
    bar = colour_bar(figure, points, ax=axes, label="active rows (log scale)", pad=0.02, shrink=0.92)
    log_axis(bar.ax.yaxis, np.array([norm.vmin, norm.vmax]))
    return figure


def _facts(places: pl.DataFrame) -> list[str]:
    if places.is_empty():
        return ["0 features"]
    by = places["by"][0]
    what = "co-activation (NPMI of neighbours)" if by == "coactivation" else "decoder directions"
    return [several(places.height, "feature"), f"t-SNE by {what}, cosine"]


def _scatter(axes: Axes, places: pl.DataFrame, **colour: Any) -> PathCollection:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_aspect("equal", adjustable="datalim")
    size = 9 if places.height < SMALL_POINTS else 4
    return axes.scatter(
        places["x"], places["y"], s=size, linewidths=0, alpha=0.8, rasterized=True, **colour
    )  # not a shape for each feature in an SVG


def _numbers(axes: Axes, places: pl.DataFrame) -> None:
    """The number of each cluster at its middle feature (median of both coordinates), above one alone."""
    by_cluster = places.drop_nulls("cluster").group_by("cluster")
    middles = by_cluster.agg(pl.col("x", "y").median(), size=pl.len()).sort("cluster")
    for number, x, y, size in middles.head(NUMBERED).iter_rows():
        box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "alpha": 0.75, "linewidth": 0}
        above = (0, 8 if size == 1 else 0)
        axes.annotate(
            str(number),
            (x, y),
            xytext=above,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7.5,
            color=INK,
            bbox=box,
        )


def _handle(colour: str, label: str) -> Line2D:
    return Line2D([], [], color=colour, marker="o", linestyle="", markersize=5, label=label)
