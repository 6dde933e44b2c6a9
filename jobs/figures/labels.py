"""Labels side by side: the features whose frequency differs between label values."""

from __future__ import annotations

import unicodedata

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jobs.figures.fonts import cut, legible
from jobs.figures.names import feature_labels
from jobs.figures.style import BLUE, SOFT, VERMILION, canvas, empty_plot, log_axis
from schemas.sentences import several
from schemas.values import F64

LEVEL = 0.05
SHOWN = 12
OF_A_VALUE = 2
"""Features shown of one value, so that one that stands out does not fill the figure."""
LEFT_TO_RIGHT = "\u200e"
"""Without it a number would stand to the left of the Arabic or Hebrew before it."""
LONGEST = 26
"""Characters of a value; half of them where features have names."""


def draw_label_differences(labels: pl.DataFrame, site: str) -> Figure:
    """The clearest differences: a feature's frequency with a value of a label, and with any other value."""
    tested = labels.drop_nulls("p")
    clear = tested.filter(pl.col("q") <= LEVEL)
    n_features = several(tested["feature"].n_unique(), "feature")
    facts = [f"{several(tested.height, 'comparison')} by document of {n_features}, {clear.height:,} clear"]
    facts.append(f"at q {LEVEL}, corrected for the features of a value")
    # the largest |z|, but a few of each value; what is shown stands by label and value
    order = clear.sort(pl.col("z").abs(), "feature", descending=[True, False])
    few_of_each = order.filter(pl.int_range(pl.len()).over("label", "value") < OF_A_VALUE)
    shown = few_of_each.head(SHOWN).sort("label", "value", maintain_order=True)
    if shown.height < clear.height:
        facts.append(f"shown: the clearest, {OF_A_VALUE} to a value")
    features = feature_labels(shown["feature"].to_list(), LONGEST // 2)
    longest = LONGEST // 2 if any(" " in feature for feature in features) else LONGEST
    names = [
        f"{_left_to_right(f'{cut(label, LONGEST // 2)} {cut(value, longest)}')} · {feature}"
        for label, value, feature in zip(shown["label"], shown["value"], features, strict=True)
    ]
    figure, axes = canvas("Features that differ by label", site, *facts)
    if shown.is_empty():
        few = "too few documents with and without each value to compare"
        return empty_plot(axes, f"no value of a label differs at q {LEVEL}" if tested.height else few)
    here = shown["frequency"].to_numpy()
    _dumbbells(axes, here, np.maximum(here - shown["difference"].to_numpy(), 0))
    axes.set_yticks(range(shown.height), names, fontsize=9)
    axes.annotate(
        "label value · feature",
        (0, 1),
        xycoords="axes fraction",
        xytext=(-8, 6),
        textcoords="offset points",
        ha="right",
        fontsize=9,
        color=SOFT,
    )
    axes.set_ylim(shown.height - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("frequency (active rows / counted rows, log scale)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2, borderaxespad=0.1, columnspacing=1.2)
    return figure


def _left_to_right(text: str) -> str:
    """The text as a font can write it, ended so that what follows stands on its right."""
    is_right_to_left = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text)
    return f"{legible(text)}{LEFT_TO_RIGHT if is_right_to_left else ''}"


def _dumbbells(axes: Axes, here: F64, elsewhere: F64) -> None:
    """Two points on each line; 0, which a log axis has not, stands at its left end."""
    positive = np.concatenate([here[here > 0], elsewhere[elsewhere > 0]])
    # where some are 0 there is room left of the least that is not
    floor = positive.min() / (3 if (elsewhere == 0).any() or (here == 0).any() else 1)
    places, ends = np.arange(len(here)), [np.where(side > 0, side, floor) for side in (here, elsewhere)]
    log_axis(axes.xaxis, np.append(positive, floor))
    axes.set_xlim(floor / 1.3, positive.max() * 1.3)
    axes.hlines(places, ends[0], ends[1], color=SOFT, linewidth=1.2, zorder=1)
    axes.scatter(ends[0], places, s=46, color=VERMILION, zorder=3, label="with this value")
    axes.scatter(
        ends[1], places, s=46, facecolor="white", edgecolor=BLUE, linewidth=1.8, zorder=2, label="any other"
    )
    for end, side in zip(ends, (here, elsewhere), strict=True):
        for place in np.flatnonzero(side == 0).tolist():
            point = (float(end[place]), place)
            axes.annotate("0", point, xytext=(-11, -3), textcoords="offset points", fontsize=8, color=SOFT)
