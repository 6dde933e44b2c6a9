"""How many features are active in a row, counting those above thresholds."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jobs.figures.distributions import MOST_BARS
from jobs.figures.setting import setting
from jobs.figures.style import BLUE, SOFT, VERMILION, canvas, decimal, empty_plot, whole_numbers
from schemas.sentences import several
from schemas.values import F64

RIDGE = 0.85
"""Height of the highest bar where histograms stand one above another."""


def draw_l0_thresholds(counts: pl.DataFrame, site: str) -> Figure:
    """How many features are active above each threshold in a row: a histogram each, one above another."""
    groups = _histograms(counts)
    rows = int(counts["rows"].sum()) // max(counts["threshold"].n_unique(), 1)
    figure, axes = canvas(
        f"Active features per {setting().row}, above thresholds",
        site,
        several(rows, "counted row"),
        "heights: share of the highest bar",
    )
    if not rows:
        return empty_plot(axes, "no row is counted")
    # the axis ends where 99.9 % of the rows of each threshold are below: a few would stretch it
    ends = [l0[np.searchsorted(np.cumsum(rows), 0.999 * rows.sum())] for _, l0, rows in groups]
    most, beyond = int(max(ends)), int(max(l0[-1] for _, l0, _ in groups))
    width = max(1, -(-(most + 1) // MOST_BARS))
    for place, (_, l0, weight) in enumerate(groups):
        # each bar adds up `width` values of L0, weighed by their rows, and stands on the line y = `place`
        near = l0 <= most
        last = most // width
        bars = np.bincount(l0[near].astype(np.int64) // width, weights=weight[near], minlength=last + 1)
        sides = np.arange(len(bars)) * width - 0.5
        heights = RIDGE * bars / bars.max()
        axes.bar(sides, heights, width=0.9 * width, bottom=place, align="edge", color=BLUE)
        axes.axhline(place, color=SOFT, linewidth=0.8)
        mean = float(np.average(l0, weights=weight))
        axes.plot([mean, mean], [place, place + RIDGE], color=VERMILION, linewidth=1.6, linestyle=(0, (5, 3)))
        axes.annotate(
            f"mean {decimal(mean)}",
            (1.0, place + 0.3),
            xycoords=axes.get_yaxis_transform(),
            ha="right",
            fontsize=9.5,
            color=VERMILION,
        )
    axes.set_yticks(range(len(groups)), [name for name, _, _ in groups])
    axes.set_ylim(-0.1, len(groups))
    axes.set_xlim(-0.5 - width / 2, (most + 1) * 1.16)
    axes.grid(visible=False, axis="y")
    whole_numbers(axes.xaxis)
    further = f" (in a few up to {beyond:,})" if beyond > most else ""
    axes.set_xlabel(f"features above the threshold per row{further}")
    axes.set_ylabel("|activation|")
    return figure


def _histograms(counts: pl.DataFrame) -> list[tuple[str, F64, F64]]:
    """Name, l0 and rows of each histogram; thresholds between which nothing lies share one."""
    groups: list[tuple[list[float], F64, F64]] = []
    for (threshold,), group in counts.sort("threshold", "l0").group_by("threshold", maintain_order=True):
        l0, rows = (group[name].to_numpy().astype(np.float64) for name in ("l0", "rows"))
        if groups and np.array_equal(groups[-1][1], l0) and np.array_equal(groups[-1][2], rows):
            groups[-1][0].append(float(threshold))
        else:
            groups.append(([float(threshold)], l0, rows))
    return [
        (f"> {of[0]:g}" if len(of) == 1 else f"> {of[0]:g} to {of[-1]:g}", l0, rows)
        for of, l0, rows in groups
    ]
