"""How much each feature matters for each class, and which matter most."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from jobs.figures.fonts import cut, legible
from jobs.figures.style import (
    BLUE,
    COLOUR_MAP,
    SOFT,
    VERMILION,
    canvas,
    colour_bar,
    empty_plot,
    log_counts,
    sheet,
)
from schemas.sentences import several

BARS = 40
COLUMNS = 4
MOST_CLASSES = 23
"""Classes shown; all rows come last."""
TOP = 30
LONGEST = 18


def draw_importance(table: pl.DataFrame, site: str) -> Figure:
    """A histogram over features for each class and for all rows, with 1 / d_sae and the 90th percentile."""
    names, parts = _parts(table)
    d_sae = table["feature"].n_unique()
    rows = -(-len(parts) // COLUMNS)
    facts = [several(d_sae, "feature"), f"label {_label(table)}", "importances of a class add up to 1"]
    facts += left_out(table.drop_nulls("importance").drop_nulls("value")["value"].n_unique())
    figure = sheet("Distribution of importance over features", site, *facts, size=(9.6, 1.6 + 1.9 * rows))
    if not parts:
        return empty_plot(figure.add_subplot(), "no class has an importance value")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes, name, part in zip(grid, names, parts, strict=False):
        _histogram(axes, part["importance"].drop_nulls().to_numpy(), d_sae)
        axes.set_title(f"{name} (n = {part['rows'][0]:,})", fontsize=10)
    for axes in grid[len(parts) :]:
        axes.set_axis_off()
    for axes in grid[::COLUMNS]:
        axes.set_ylabel("features", fontsize=9)
    for axes in grid[max(0, len(parts) - COLUMNS) : len(parts)]:
        axes.set_xlabel("importance", fontsize=9)
    dashes = (0, (5, 3))
    lines = [
        Line2D([], [], color=VERMILION, linestyle=dashes, label="1 / d_sae"),
        Line2D([], [], color="black", linestyle=":", label="90th percentile"),
    ]
    figure.legend(handles=lines, loc="upper right", ncols=2)
    return figure


def _histogram(axes: Axes, values: np.ndarray, d_sae: int) -> None:
    axes.hist(values, bins=BARS, color=BLUE)
    log_counts(axes.yaxis)
    axes.axvline(1 / d_sae, color=VERMILION, linestyle=(0, (5, 3)), linewidth=1.4)
    axes.axvline(float(np.percentile(values, 90)), color="black", linestyle=":", linewidth=1.4)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_top_importance(table: pl.DataFrame, site: str) -> Figure:
    """The numbers of the most important features of each class, the first on top, shaded by importance."""
    names, parts = _parts(table)
    k = min(TOP, table["feature"].n_unique())
    facts = [f"the first {k} of {table['feature'].n_unique():,} features", f"label {_label(table)}"]
    size = (1.9 + 0.62 * max(len(parts), 6), 1.6 + 0.2 * k)
    figure, axes = canvas("The most important features of each class", site, *facts, size=size)
    if not parts:
        return empty_plot(axes, "no class has an importance value")
    best = [part.sort("rank").head(k) for part in parts]
    shares = np.array([part["importance"].fill_null(0.0).to_list() for part in best]).T
    image = axes.imshow(shares, aspect="auto", cmap=COLOUR_MAP)
    # ink that can be read on the colour below it
    middle = (shares.max() + shares.min()) / 2
    for column, part in enumerate(best):
        for place, feature in enumerate(part["feature"].to_list()):
            ink = "white" if shares[place, column] < middle else "black"
            axes.text(column, place, str(feature), ha="center", va="center", fontsize=8, color=ink)
    axes.grid(visible=False)
    axes.set_xticks(range(len(names)), names, rotation=40 if max(map(len, names)) > 9 else 0, fontsize=8.5)
    axes.set_yticks(range(k), [str(place + 1) for place in range(k)], fontsize=8)
    axes.set_ylabel("rank", color=SOFT)
    axes.set_xlabel("class")
    colour_bar(figure, image, ax=axes, label="importance", pad=0.02)
    return figure


def _parts(table: pl.DataFrame) -> tuple[list[str], list[pl.DataFrame]]:
    """Names and tables of the classes that have an importance, all rows last."""
    values = table.drop_nulls("importance")["value"].unique(maintain_order=True).to_list()
    classes = [value for value in values if value is not None]
    shown = [*classes[:MOST_CLASSES], *([None] if None in values else [])]
    names = ["all" if value is None else legible(cut(value, LONGEST)) for value in shown]
    return names, [table.filter(pl.col("value").eq_missing(value)) for value in shown]


def left_out(classes: int) -> list[str]:
    """A fact where not all of so many classes are shown."""
    return [f"shown: the first {MOST_CLASSES} of {classes:,} classes"] if classes > MOST_CLASSES else []


def _label(table: pl.DataFrame) -> str:
    return legible(str(table["label"][0])) if table.height else ""
