"""What the model loses when x is replaced."""

from __future__ import annotations

import polars as pl
from matplotlib.figure import Figure

from jobs.figures.style import BLUE, INK, canvas, empty_plot
from schemas.sentences import several

LOSSES = {
    "clean_loss": "x unchanged",
    "patched_loss": "the SAE's reconstruction",
    "mean_loss": "the mean of x",
    "zero_loss": "zeros",
}
FACTS = {
    "recovered_share": "recovered {:.3f}",
    "explained_variance": "explained variance {:.3f}",
    "kl": "KL {:.3f} nats",
    "l0": "L0 {:.1f}",
}


def draw_fidelity(fidelity: pl.DataFrame, site: str) -> Figure:
    """Next-token loss with each replacement of x, with its 95 % interval by document."""
    rows = {row["measure"]: row for row in fidelity.iter_rows(named=True)}
    losses = [rows[name] for name in LOSSES if rows.get(name, {}).get("value") is not None]
    facts = [
        text.format(rows[name]["value"])
        for name, text in FACTS.items()
        if rows.get(name, {}).get("value") is not None
    ]
    n = [several(row["tokens"], "prediction") for row in losses[:1]]
    n += [several(row["documents"], "document") for row in losses[:1]]
    figure, axes = canvas("Loss of the model with reconstructed x", site, *n, *facts)
    if not losses:
        return empty_plot(axes, "no loss was measured")
    for place, row in enumerate(losses):
        ends = (row["low"], row["high"]) if row["low"] is not None else (row["value"],) * 2
        axes.plot(ends, (place, place), color=BLUE, linewidth=5, alpha=0.35, solid_capstyle="butt")
        axes.plot(row["value"], place, "o", color=BLUE, markersize=8)
        axes.annotate(
            f"{row['value']:.3f}",
            (row["value"], place),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=INK,
        )
    axes.set_yticks(range(len(losses)), [LOSSES[row["measure"]] for row in losses])
    axes.set_ylim(len(losses) - 0.5, -0.7)
    axes.margins(x=0.12)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("mean next-token loss in nats, with its 95 % interval")
    axes.set_ylabel("x replaced by")
    return figure
