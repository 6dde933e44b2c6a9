"""How a quantity is spread: over features (frequency, mean activation) and over rows (L0)."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jobs.figures.bins import log_bars, whole_bars
from jobs.figures.setting import setting
from jobs.figures.style import BLUE, canvas, decimal, empty_plot, log_axis, mark, share, whole_numbers
from schemas.sentences import several
from schemas.values import F64

BARS_PER_DECADE = (5, 10, 20, 50, 100)
FEWEST_BARS, MOST_BARS = 30, 120
NARROWEST = 0.3
"""Decades that a log histogram spans at the least."""


def draw_frequency(features: pl.DataFrame, site: str) -> Figure:
    """How often features fire, of those that fired; a fact says how many never did."""
    fired = features.filter(pl.col("n_active") > 0)
    dead = features.height - fired.height
    never = f"{dead:,} of {several(features.height, 'feature')} ({share(dead, features.height)}) never fired"
    facts = [never, _rows(features)]
    if dead and (rows := int(features["counted_rows"][0])):
        # the rule of three (Hanley and Lippman-Hand 1983): below 1 - 0.05^(1 / n), some 3 / n
        bound = -np.expm1(np.log(0.05) / rows)
        facts.append(f"never fired: frequency below {bound:.1e} at 95 %, if rows were independent")
    figure, axes = canvas("How often features fire", site, *facts)
    if fired.is_empty():
        return empty_plot(axes, "no feature fired")
    _log_histogram(axes, fired["frequency"].to_numpy(), "median {:.2g}", int(fired["counted_rows"][0]))
    axes.set_xlabel("frequency (active rows / counted rows, log scale)")
    return figure


def draw_mean_activation(features: pl.DataFrame, site: str) -> Figure:
    """How strongly features fire when they fire, by the magnitude of their mean activation."""
    shown, facts = with_a_mean(features)
    figure, axes = canvas("How strongly features fire", site, *facts, _rows(features))
    if shown.is_empty():
        return empty_plot(axes, "no feature fired")
    means = shown["mean_active"].to_numpy()
    _log_histogram(axes, np.abs(means), "median {:.3g}")
    axes.set_xlabel(f"{magnitude(means)} (log scale, units of the SAE)")
    return figure


def draw_max_activation(features: pl.DataFrame, site: str) -> Figure:
    """The largest |activation| of each feature that fired."""
    fired = features.filter(pl.col("n_active") > 0)
    fact = f"{fired.height:,} of {several(features.height, 'feature')} fired"
    figure, axes = canvas("Strongest activation of each feature", site, fact, _rows(features))
    if fired.is_empty():
        return empty_plot(axes, "no feature fired")
    strongest = extremes(fired)
    _log_histogram(axes, strongest, "median {:.3g}")
    signed = bool((fired["min_activation"] < 0).any())
    what = "strongest |activation|" if signed else "strongest activation"
    axes.set_xlabel(f"{what} of a feature (log scale, units of the SAE)")
    return figure


def extremes(fired: pl.DataFrame) -> F64:
    """The largest |activation| of each feature, float64 [F]."""
    sides = fired["max_activation"].abs().to_numpy(), fired["min_activation"].abs().to_numpy()
    strongest: F64 = np.maximum(*sides).astype(np.float64)
    return strongest


def draw_l0(l0: pl.DataFrame, site: str) -> Figure:
    """How many features are active in a row."""
    rows = int(l0["rows"].sum())
    figure, axes = canvas(f"Active features per {setting().row}", site, several(rows, "counted row"))
    if not rows:
        return empty_plot(axes, "no row is counted")
    number, weight = l0["l0"].to_numpy().astype(np.float64), l0["rows"].to_numpy()
    edges = whole_bars(int(number[0]), int(number[-1]), MOST_BARS)
    width = int(edges[1] - edges[0])
    axes.hist(number, bins=edges.tolist(), weights=weight, color=BLUE, rwidth=0.9)
    mean = float(np.average(number, weights=weight))
    mark(axes, mean, f"mean {decimal(mean)}")
    whole_numbers(axes.xaxis)
    whole_numbers(axes.yaxis)
    axes.set_xlim(max(-0.5, number[0] - 3), max(edges[-1], number[-1] + 3))
    axes.set_xlabel("L0 (active features per row)" + (f", {width} to a bar" if width > 1 else ""))
    axes.set_ylabel("rows")
    return figure


def with_a_mean(features: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The features whose mean activation a log axis can show, and the facts of the figure.

    Where negative activations fire, a mean can be 0.
    """
    fired = features.filter(pl.col("n_active") > 0)
    shown = fired.filter(pl.col("mean_active") != 0)
    facts = [f"{fired.height:,} of {several(features.height, 'feature')} fired"]
    if shown.height < fired.height:
        facts.append(f"{fired.height - shown.height:,} with mean 0 are not shown")
    return shown, facts


def magnitude(means: F64) -> str:
    """What the axis of a mean activation is called; SAEs such as AbsTopK have negative ones."""
    return "mean activation when active" if (means > 0).all() else "|mean activation| when active"


def _log_histogram(axes: Axes, values: F64, label: str, rows: int | None = None) -> None:
    """Histogram of positive values on a log axis, the median marked; bars are even parts of a decade.

    Values that are shares of so many `rows` are whole numbers of them: bars hold whole numbers, and their
    areas are what they count.
    """
    low, high = np.log10(values.min()), np.log10(values.max())
    middle, span = (low + high) / 2, max(high - low, NARROWEST)
    parts = next((n for n in BARS_PER_DECADE if n * span >= FEWEST_BARS), BARS_PER_DECADE[-1])
    if rows is None:
        edges = 10 ** (np.arange(np.floor(low * parts), np.floor(high * parts) + 2) / parts)
    else:
        edges = log_bars(round(10**low * rows), round(10**high * rows), 10 ** (1 / parts)) / rows
    log_axis(axes.xaxis, edges)
    ends = 10 ** (middle + span * np.array([-0.55, 0.55]))
    axes.set_xlim(min(ends[0], edges[0]), max(ends[1], edges[-1]))  # a bar that is cut has another area
    heights = np.histogram(values, edges)[0] / (1.0 if rows is None else np.diff(np.log10(edges)))
    axes.bar(edges[:-1], heights, np.diff(edges), align="edge", color=BLUE, edgecolor="white", linewidth=0.6)
    median = float(np.median(values))
    mark(axes, median, label.format(median))
    whole_numbers(axes.yaxis)
    axes.set_ylabel("features" if rows is None else "features per decade (area of a bar)")


def _rows(features: pl.DataFrame) -> str:
    return several(int(features["counted_rows"][0]) if features.height else 0, "counted row")
