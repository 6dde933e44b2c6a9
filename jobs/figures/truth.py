"""A known dictionary: what is measured against what is true."""

from __future__ import annotations

from typing import Any

import polars as pl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jobs.figures.style import BLUE, SOFT, VERMILION, canvas, colour_bar, empty_plot, log_axis, share
from schemas.sentences import several


def draw_truth_frequency(truth: pl.DataFrame, site: str) -> Figure:
    """Measured frequency of each feature over the true one, with its 95 % interval."""
    axes = "true frequency (share of rows)", "measured frequency / true frequency"
    return _ratios(
        truth, site, ("true_frequency", "frequency", "frequency"), "Frequency compared with the truth", axes
    )


def draw_truth_mean(truth: pl.DataFrame, site: str) -> Figure:
    """Measured mean where active over what the encoder should give, with its 95 % interval."""
    if truth["expected_mean"].is_null().all():
        true, what = "true_mean", "true mean where active"
    else:
        true, what = "expected_mean", "mean of this encoder where the true feature fires"
    axes = f"{what} (activation)", "measured mean where active / that mean"
    return _ratios(
        truth, site, (true, "mean_active", "mean"), "Mean where active compared with the truth", axes
    )


def _ratios(
    truth: pl.DataFrame, site: str, names: tuple[str, str, str], title: str, labels: tuple[str, str]
) -> Figure:
    """Measured over true, by the true number; 1 is the truth."""
    true, measured, ends = names
    ratios = {name: pl.col(name) / pl.col(true) for name in (measured, f"{ends}_low", f"{ends}_high")}
    known = truth.drop_nulls(["true_feature", true, measured, f"{ends}_low"]).filter(pl.col(true) > 0)
    x, table = known[true].to_numpy(), known.with_columns(**ratios)
    y, low, high = (table[name].to_numpy() for name in ratios)
    holds = (low <= 1) & (high >= 1)
    coverage = f"{share(int(holds.sum()), len(holds))} of the 95 % intervals hold the truth"
    facts = [several(len(x), "matched feature"), coverage] if len(x) else []
    facts += [several(int(rows), "row") for rows in known["counted_rows"][:1]]
    figure, axes = canvas(title, site, *facts)
    if not len(x):
        return empty_plot(axes, "no feature was matched, or none fired")
    sides = ((holds, BLUE, "o", "the interval holds the truth"), (~holds, VERMILION, "D", "it does not"))
    for chosen, colour, marker, label in sides:
        if chosen.any():
            axes.vlines(x[chosen], low[chosen], high[chosen], color=colour, alpha=0.45, linewidth=1.6)
            axes.plot(x[chosen], y[chosen], marker, color=colour, markersize=3.5, label=label)
    axes.axhline(1, color=SOFT, linewidth=1, zorder=0)
    if x.max() > 4 * x.min():
        log_axis(axes.xaxis, x)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.margins(y=0.18)
    axes.legend(loc="upper right", ncols=2)
    return figure


def draw_truth_cosines(cosines: pl.DataFrame, site: str) -> Figure:
    """Cosines of encoder and decoder directions with the true ones, features in the literal order."""
    n, true = cosines["place"].n_unique(), cosines["true_feature"].n_unique()
    facts = [f"{several(n, 'feature')} × {several(true, 'true feature')}", "features in the literal order"]
    figure, axes = canvas("Cosine with the true features", site, *facts)
    if not cosines.height:
        return empty_plot(axes, "the SAE has no feature")
    axes.remove()
    panels: Any = figure.subplots(1, 2, sharey=True)
    ordered = cosines.sort("place", "true_feature")
    for axes, name in zip(panels, ("encoder", "decoder"), strict=True):
        matrix: Any = ordered[name].to_numpy().reshape(n, true)
        image = axes.imshow(  # orange is positive, purple negative (PuOr, colour-blind safe)
            matrix, cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest", rasterized=True
        )
        axes.set_title(f"SAE's {name}", fontsize=11)
        axes.grid(visible=False)
        axes.set_xlabel("true feature")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(8, integer=True))
    panels[0].set_ylabel("feature of the SAE, by position in the order")
    colour_bar(figure, image, ax=list(panels), label="cosine", pad=0.02, ticks=[-1, -0.5, 0, 0.5, 1])
    return figure
