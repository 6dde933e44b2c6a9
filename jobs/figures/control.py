"""Learnt features against their control, on the same contexts."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jobs.figures.bins import log_bars
from jobs.figures.setting import setting
from jobs.figures.style import BLUE, VERMILION, canvas, empty_plot, log_axis, whole_numbers
from schemas.sentences import several
from schemas.values import F64

COLOURS = {"learnt": BLUE, "control": VERMILION}
LINES = {"learnt": "-", "control": (0, (4, 1.5))}
"""Distinguishable in grey, too."""
BARS = 48
TICKS = (0, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000)
"""Of L0."""
NAMES = {
    "random_encoder": "random encoder (normal entries, ReLU)",
    "shuffled_rows": "encoder with shuffled rows (ReLU)",
}
"""What each control is called in a legend."""


def draw_control_frequency(features: pl.DataFrame, site: str) -> Figure:
    """How often learnt features fire, and those of the control."""
    return _over_features(
        features, site, "frequency", "How often features fire: learnt and control", "frequency (log scale)"
    )


def draw_control_mean(features: pl.DataFrame, site: str) -> Figure:
    """How strong learnt features are on average, zeros included, and those of the control."""
    return _over_features(
        features,
        site,
        "mean_all",
        "Mean activation: learnt and control",
        "mean activation over all counted rows, zeros included (log scale, units of the SAE)",
    )


def draw_control_max(features: pl.DataFrame, site: str) -> Figure:
    """The largest |activation| of learnt features, as `max_activation` draws it, and of the control's."""
    strongest = "strongest_activation" if "strongest_activation" in features.columns else "max_activation"
    signed = bool((features[strongest] < 0).any())
    return _over_features(
        features,
        site,
        strongest,
        "Strongest activation: learnt and control",
        f"strongest {'|activation|' if signed else 'activation'} of a feature (log scale, units of the SAE)",
    )


def draw_control_l0(l0: pl.DataFrame, site: str) -> Figure:
    """How many features of a row are above each threshold, learnt and control."""
    thresholds = l0["threshold"].unique().sort().to_list()
    rows = int(l0.filter(of="learnt", threshold=thresholds[0])["rows"].sum()) if thresholds else 0
    title = f"Active features per {setting().row}: learnt and control"
    figure, axes = canvas(title, site, several(rows, "counted row"))
    if not rows:
        return empty_plot(axes, "no token is counted in the control's contexts")
    grid = axes.get_subplotspec()
    assert grid is not None
    axes.remove()
    panels = grid.subgridspec(len(thresholds), 1, hspace=0).subplots(sharex=True, squeeze=False)[:, 0]
    most = int(l0["l0"].to_numpy().max())
    edges = log_bars(0, most, (most + 2) ** (1 / BARS))
    for panel, threshold in zip(panels, thresholds, strict=True):
        # areas are rows, the tallest bar of either is 1
        for of in COLOURS:
            counts = l0.filter(of=of, threshold=threshold)
            n = np.histogram(counts["l0"].to_numpy(), edges, weights=counts["rows"].to_numpy())[0]
            heights = n / np.diff(_place(edges))
            _bars(panel, heights / max(heights.max(), 1e-300), _place(edges), of)
        label = {"va": "top", "fontweight": "bold", "fontsize": 10}
        panel.text(0.01, 0.85, f"> {threshold:g}", transform=panel.transAxes, **label)
        panel.set_yticks([])
        panel.margins(y=0.25)
        panel.spines["left"].set_visible(False)
        panel.set_ylim(bottom=0)
    last = panels[-1]
    ticks = [n for n in TICKS if n < edges[-1]]
    last.set_xticks(_place(np.array(ticks)), [f"{n:,}" for n in ticks])
    last.set_xlabel("L0 (features of a row above the threshold; log scale of L0 + 1)")
    figure.supylabel("rows (area of a bar; each curve scaled to its tallest bar)", fontsize=11)
    _legend(panels[0], None)
    return figure


def _over_features(features: pl.DataFrame, site: str, column: str, title: str, label: str) -> Figure:
    """Histograms of a column that is not negative but for signed SAEs, of which magnitudes are drawn."""
    values = {of: features.filter(pl.col("of") == of)[column].abs().fill_null(0) for of in COLOURS}
    silent = [f"{(v == 0).sum():,} of {of}" for of, v in values.items()]
    rows = int(features["counted_rows"][0]) if features.height else 0
    n = several(len(values["learnt"]), "feature")
    facts = [f"{n} each", several(rows, "counted row"), f"not shown, at 0: {', '.join(silent)}"]
    figure, axes = canvas(title, site, *facts)
    shown = {of: v.filter(v > 0).to_numpy() for of, v in values.items()}
    every = np.concatenate(list(shown.values()))
    if not len(every):
        return empty_plot(axes, "no feature fired in the control's contexts")
    is_count = column == "frequency"
    if is_count:  # shares of so many rows: bars that each hold whole numbers of active rows
        fewest, most = (round(end * rows) for end in (every.min(), every.max()))
        edges = log_bars(fewest, most, (most / fewest) ** (1 / BARS)) / rows
    else:  # bars that are even parts of the log axis
        low, high = np.log10(every.min()), np.log10(every.max())
        edges = np.logspace(low - 0.02, max(high, low + 0.3) + 0.02, BARS + 1)
    log_axis(axes.xaxis, edges)
    for of, values_shown in shown.items():
        heights = np.histogram(values_shown, edges)[0].astype(np.float64)
        _bars(axes, heights / np.diff(np.log10(edges)) if is_count else heights, edges, of)
    axes.margins(y=0.12)
    _legend(axes, features)
    whole_numbers(axes.yaxis)
    axes.set_xlabel(label)
    axes.set_ylabel("features per decade (area of a bar)" if is_count else "features")
    return figure


def _place(l0: F64) -> F64:
    """Where an L0 stands: log2 of L0 + 1, so that rows without any feature are shown."""
    return np.log2(l0 + 1.0)


def _bars(axes: Axes, heights: F64, edges: F64, of: str) -> None:
    """A histogram that another one is seen through."""
    bars = np.flatnonzero(heights)
    first, last = (int(bars[0]), int(bars[-1]) + 1) if len(bars) else (0, 1)
    place = (heights[first:last], edges[first : last + 1])
    axes.stairs(*place, fill=True, color=COLOURS[of], alpha=0.3)
    axes.stairs(*place, color=COLOURS[of], linewidth=1.6, linestyle=LINES[of], label=of)


def _legend(axes: Axes, features: pl.DataFrame | None) -> None:
    """Which is which above the plot, and by its table what the control is."""
    names = {"learnt": "learnt", "control": "control"}
    if features is not None:
        for of, control, rule in features.select("of", "control", "architecture").unique("of").iter_rows():
            names[of] = NAMES.get(control, control) if of == "control" else f"learnt ({rule})"
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles,
        [names[of] for of in labels],
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=2,
        borderaxespad=0.2,
    )
