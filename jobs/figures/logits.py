"""Direct unembedding: how sharp the features' distributions are, against random directions of their norms."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jobs.figures.style import BLUE, VERMILION, canvas, log_axis, nothing
from schemas.sentences import several
from schemas.values import F64

NAMES = {"feature": ("features", BLUE), "random": ("random directions of the same norms", VERMILION)}


def draw_logit_entropy(histogram: pl.DataFrame, site: str) -> Figure:
    """Entropy of the next token, of features and of random directions."""
    figure, axes = _canvas("How sharply features choose tokens", histogram, site, "entropy_bits")
    if _draw(axes, histogram, "entropy_bits", "{:.2f} bits"):
        axes.set_xlabel("entropy of softmax(unembed(norm(direction))), bits")
    return figure


def draw_logit_max_probability(histogram: pl.DataFrame, site: str) -> Figure:
    """The largest probability of a token, of features and of random directions."""
    figure, axes = _canvas("The token that a feature makes likeliest", histogram, site, "max_probability")
    if _draw(axes, histogram, "max_probability", "{:.2g}"):
        axes.set_xlabel("largest probability of a token (log scale)")
    return figure


def _canvas(title: str, histogram: pl.DataFrame, site: str, measure: str) -> tuple[Figure, Axes]:
    numbers = {of: int(_part(histogram, measure, of)["n"].sum()) for of in NAMES}
    facts = several(numbers["feature"], "feature"), several(numbers["random"], "random direction")
    return canvas(title, site, *facts)


def _draw(axes: Axes, histogram: pl.DataFrame, measure: str, label: str) -> bool:
    """Both histograms as shares of their own number; whether there is anything."""
    parts = {of: _part(histogram, measure, of) for of in NAMES}
    parts = {of: part for of, part in parts.items() if part["n"].sum()}
    if not parts:
        nothing(axes, "no feature was unembedded")
        return False
    edges = _edges(next(iter(parts.values())))
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
    axes.set_ylabel("share of each, %")
    return True


def _part(histogram: pl.DataFrame, measure: str, of: str) -> pl.DataFrame:
    return histogram.filter(pl.col("measure") == measure, pl.col("of") == of).sort("low")


def _edges(part: pl.DataFrame) -> F64:
    return np.append(part["low"].to_numpy(), part["high"].to_numpy()[-1:])
