"""Direct unembedding: how sharp the features' distributions are, against random directions of their norms."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jobs.figures.style import BLUE, VERMILION, canvas, empty_plot, log_axis
from schemas.sentences import several

NAMES = {"feature": ("features", BLUE), "random": ("random directions of the same norms", VERMILION)}


def draw_logit_entropy(histogram: pl.DataFrame, site: str) -> Figure:
    """Entropy of the next token, of features and of random directions."""
    title, axis = (
        "Sharpness of the token choice of features",
        "entropy of softmax(unembed(norm(direction))), bits",
    )
    return _draw(histogram, site, "entropy_bits", "{:.2f} bits", title, axis)


def draw_logit_max_probability(histogram: pl.DataFrame, site: str) -> Figure:
    """The largest probability of a token, of features and of random directions."""
    title, axis = (
        "Probability of each feature's most likely token",
        "largest probability of a token (log scale)",
    )
    return _draw(histogram, site, "max_probability", "{:.2g}", title, axis)


def _draw(histogram: pl.DataFrame, site: str, measure: str, label: str, title: str, axis: str) -> Figure:
    """Both histograms as shares of their own number."""
    of_measure = histogram.filter(pl.col("measure") == measure).sort("low")
    parts = {of: of_measure.filter(pl.col("of") == of) for of in NAMES}
    numbers = {of: int(part["n"].sum()) for of, part in parts.items()}
    facts = several(numbers["feature"], "feature"), several(numbers["random"], "random direction")
    figure, axes = canvas(title, site, *facts)
    parts = {of: part for of, part in parts.items() if numbers[of]}
    if not parts:
        return empty_plot(axes, "no feature was unembedded")
    first = next(iter(parts.values()))  # both have the same bars
    edges = np.append(first["low"].to_numpy(), first["high"].to_numpy()[-1:])
    if measure == "max_probability":
        log_axis(axes.xaxis, edges)
    for of, part in parts.items():
        name, colour = NAMES[of]
        filled = {"alpha": 0.55} if of == "feature" else {"histtype": "step", "linewidth": 2.2}
        weights = 100 * part["n"].to_numpy() / part["n"].sum()
        legend = f"{name}, median {label.format(part['median'][0])}"
        axes.hist(edges[:-1], bins=edges.tolist(), weights=weights, color=colour, label=legend, **filled)
    axes.margins(y=0.25)
    axes.legend(loc="upper left")
    axes.set_xlabel(axis)
    axes.set_ylabel("share of each, %")
    return figure
