"""Features side by side: density against strength, and the ranking by sigma / mu."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from jobs.figures.distributions import extremes, magnitude, with_a_mean
from jobs.figures.style import (
    BLUE,
    COLOUR_MAP,
    GREEN,
    VERMILION,
    canvas,
    colour_bar,
    empty_plot,
    log_axis,
    powers_of_ten,
    whole_numbers,
)
from schemas.sentences import several
from schemas.values import F64

WINDOW = 50
MIDDLE = 2000
"""Where the second window of the ranking starts, in a ranking that is long enough."""


def draw_density_and_mean(features: pl.DataFrame, site: str) -> Figure:
    """Frequency against mean activation of each feature that fired, its strongest activation as colour."""
    fired, facts = with_a_mean(features)
    figure, axes = canvas("Frequency against mean activation", site, *facts)
    if fired.is_empty():
        return empty_plot(axes, "no feature fired")
    means = fired["mean_active"].to_numpy()
    extreme = extremes(fired)
    frequency = fired["frequency"].to_numpy()
    log_axis(axes.xaxis, frequency)
    log_axis(axes.yaxis, np.abs(means))
    points = axes.scatter(
        frequency,
        np.abs(means),
        c=extreme,
        s=float(np.clip(40_000 / len(means), 2, 16)),
        alpha=float(np.clip(3_000 / len(means), 0.35, 0.8)),
        cmap=COLOUR_MAP,
        norm=LogNorm(*_span(extreme)),
        linewidths=0,
        rasterized=True,  # an SVG with a shape for each of a million features opens nowhere
    )
    signed = bool((fired["min_activation"] < 0).any())
    label = "strongest |activation|" if signed else "strongest activation"
    bar = colour_bar(figure, points, ax=axes, label=label, pad=0.02)
    log_axis(bar.ax.yaxis, np.array(_span(extreme)))
    axes.set_xlabel("frequency (active rows / counted rows)")
    axes.set_ylabel(magnitude(means))
    return figure


def draw_sigma_over_mu(rankings: pl.DataFrame, site: str) -> Figure:
    """Features by descending sigma / mu over all rows, two windows of the ranking marked."""
    ranked = rankings.filter(pl.col("by") == "sigma_over_mu").sort("rank")
    values = ranked["value"].to_numpy()
    # features with few active rows follow the others in an order of their own: they begin where values rise
    rises = np.flatnonzero(np.diff(values) > 0)
    end = int(rises[0]) + 1 if len(rises) else len(values)
    values, rare = values[:end], len(values) - end
    facts = [f"{several(ranked.height, 'feature')} with a value"]
    facts += [f"{rare:,} with few active rows rank last and are not drawn"] if rare else []
    figure, axes = canvas("Features ranked by σ / μ", site, *facts)
    if ranked.is_empty():
        return empty_plot(axes, "no feature is ranked by sigma_over_mu")
    if values[-1] > 0:
        log_axis(axes.yaxis, values)
    elif values.any():  # of signed activations: logarithms on both sides of 0, nothing is left out
        axes.set_yscale("symlog", linthresh=float(np.abs(values[values != 0]).min()))
        powers_of_ten(axes.yaxis)
    axes.plot(np.arange(1, len(values) + 1), values, color=BLUE, linewidth=2.2, solid_capstyle="round")
    for start, colour in zip(windows(len(values)), (VERMILION, GREEN), strict=False):
        stop = min(start + WINDOW, len(values))
        label = f"#{start + 1:,} to #{stop:,}: {values[start]:.3g} to {values[stop - 1]:.3g}"
        ranks = np.arange(start, stop) + 1
        line = axes.plot(ranks, values[start:stop], color=colour, zorder=3, label=label)[0]
        line.set(linewidth=5, solid_capstyle="round", marker="o", markersize=4, markeredgewidth=0)
    axes.margins(x=0.03, y=0.22)  # the curve falls, and above it there is room for the legend
    axes.legend(loc="upper right")
    whole_numbers(axes.xaxis)
    axes.set_xlabel("rank (#1 has the largest σ / μ)")
    axes.set_ylabel("σ / μ over all counted rows")
    return figure


def windows(n: int) -> list[int]:
    """Where the marked windows of a ranking of `n` start: at the top, and at MIDDLE or else in the middle."""
    if n < 4 * WINDOW:
        return [0]
    return [0, MIDDLE if n >= MIDDLE + WINDOW else (n - WINDOW) // 2]


def _span(values: F64) -> tuple[float, float]:
    """Ends of a log colour scale, apart even where all values are equal."""
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low / 2, high * 2)
