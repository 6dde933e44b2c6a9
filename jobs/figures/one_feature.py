"""One feature: how strong its activations are, and which way it pushes the logits of all tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jobs.figures.style import BLUE, SIZE, VERMILION, empty_plot, log_axis, log_counts, sheet, whole_numbers
from schemas.values import F64


def draw_one_feature(
    row: Mapping[str, Any],
    edges: tuple[F64, F64],
    logits: Mapping[str, Any] | None,
    site: str,
    name: str,
) -> Figure:
    """Histograms of a feature: of its row of the feature table and, if there is one, of the table `logits`.

    `edges` are the left and right ones of its bins. The area of a bar is its count. Activations of both signs
    are on a linear axis, others on a log axis.
    """
    has_effects = logits is not None and logits.get("effect_counts") is not None
    facts = [*([name] if name else []), f"active on {row['n_active']:,} of {row['counted_rows']:,} rows"]
    title = f"Activations of feature {row['feature']}"
    width, height = SIZE
    size = (width, height * 0.8) if not has_effects else (width, height * 1.35)
    figure = sheet(title + (" and its effect on tokens" if has_effects else ""), site, *facts, size=size)
    axes = figure.subplots(2 if has_effects else 1, squeeze=False)[:, 0]
    if not row["n_active"]:
        empty_plot(axes[0], "it never fires")
    else:
        _activations(axes[0], *edges, np.array(row["histogram_counts"], np.float64))
    if has_effects:
        assert logits is not None
        _effects(axes[1], logits)
    return figure


def _activations(axes: Axes, left: F64, right: F64, counts: F64) -> None:
    signed = bool((left < 0).any())
    # bins are even on neither axis, so heights are counts per width
    widths = right - left if signed else np.log2(right / left)
    colours = np.where(right <= 0, VERMILION, BLUE).tolist()
    axes.bar(left, counts / widths, right - left, align="edge", color=colours, edgecolor="white", lw=0.3)
    if not signed:
        log_axis(axes.xaxis, np.concatenate([left, right]))
    axes.set_xlabel("activation (units of the SAE)" if signed else "activation (log scale, units of the SAE)")
    axes.set_ylabel("rows per unit" if signed else "rows per octave")
    whole_numbers(axes.yaxis)


def _effects(axes: Axes, logits: Mapping[str, Any]) -> None:
    counts = np.array(logits["effect_counts"])
    edges = np.linspace(logits["effect_low"], logits["effect_high"], len(counts) + 1)
    colours = np.where(edges[1:] <= 0, VERMILION, BLUE).tolist()
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colours, edgecolor="white", lw=0.3)
    # the tokens that matter are the few at the ends; a bar begins below 1, so that one token is seen
    log_counts(axes.yaxis)
    axes.set_ylim(bottom=0.5)
    axes.set_xlabel("effect on a token's logit, per unit of activation (W_dec @ W_U)")
    axes.set_ylabel(f"tokens, of {counts.sum():,}")
