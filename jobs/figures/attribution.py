"""What each selected feature adds to the gap between two answers, value by value of a label."""

from __future__ import annotations

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jobs.figures.fonts import cut, legible
from jobs.figures.names import feature_labels
from jobs.figures.setting import bilingual
from jobs.figures.style import INK, canvas, colour_bar, empty_plot, name_some
from schemas.sentences import several
from schemas.values import F64

SIZE = (9.0, 5.5)
MOST_VALUES, MOST_FEATURES = 40, 60
"""Shown: values in the table's order, features of largest |score|."""
BRIGHTEST = 98
"""Percentile of |score| at which colours end, of what is not 0."""
LONGEST, SHORT = 28, 16
NAMED = 50
"""Features whose numbers are written, at most."""


def draw_attribution_map(selection: pl.DataFrame, site: str) -> Figure:
    """Values × features of `attribution_selection`; a dot where the effect holds under ablation.

    Scores of an external table, whose prompts are not known, are of what that table says, not of gaps.
    """
    external = bool(selection.height) and selection["prompts"].is_null().all()
    title = bilingual("Contributions of features to the answer gap", "답변 차이에 대한 특징의 기여")
    label = bilingual("score (mean over prompts)", "점수")
    if external:
        title = bilingual("Features by the scores of an external table", "외부 점수에 따른 특징")
        label = bilingual("score (of the external table)", "점수")
    values = selection.select("label", "value").unique(maintain_order=True).head(MOST_VALUES)
    rows = selection.join(values, on=["label", "value"], how="semi", maintain_order="left")
    features = _features(rows)
    size = (SIZE[0], max(SIZE[1], 1.6 + 0.15 * values.height))
    figure, axes = canvas(title, site, *_facts(selection, values.height, len(features)), size=size)
    if not features:
        return empty_plot(axes, "no feature was selected")
    scores = _grid(rows, values, features, "score")
    holds = _grid(rows, values, features, "holds")
    # one far score must not make all others pale
    ends = np.percentile(np.abs(scores[scores != 0]), BRIGHTEST, method="higher") if scores.any() else 1.0
    image = axes.imshow(scores, aspect="auto", cmap="PuOr_r", vmin=-ends, vmax=ends, interpolation="nearest")
    place = np.argwhere(holds > 0)
    axes.scatter(place[:, 1], place[:, 0], s=14, color=INK, edgecolors="white", linewidths=0.6)
    axes.grid(visible=False)
    name_some(
        axes.xaxis,
        feature_labels(features, SHORT),
        NAMED,
        bilingual("feature", "특징"),
        rotation=90,
        fontsize=7,
    )
    names = [legible(cut(" ".join(row), LONGEST)) for row in values.rows()]
    axes.set_yticks(range(values.height), names, fontsize=8)
    beyond = "neither" if np.abs(scores).max() <= ends else "both"
    colour_bar(figure, image, ax=axes, pad=0.02, extend=beyond, label=label)
    return figure


def _features(rows: pl.DataFrame) -> list[int]:
    """The features of largest |score|, in that order."""
    best = rows.group_by("feature").agg(largest=pl.col("score").abs().max())
    order = best.sort("largest", "feature", descending=[True, False])
    return order["feature"].head(MOST_FEATURES).to_list()


def _grid(rows: pl.DataFrame, values: pl.DataFrame, features: list[int], column: str) -> F64:
    """A column as float64 [values, features], 0 where it is null."""
    grid = np.zeros((values.height, len(features)))
    row = {key: n for n, key in enumerate(values.rows())}
    place = {feature: n for n, feature in enumerate(features)}
    for label, value, feature, cell in rows.select("label", "value", "feature", column).iter_rows():
        if feature in place:
            grid[row[label, value], place[feature]] = cell or 0.0
    return grid


def _facts(selection: pl.DataFrame, values: int, features: int) -> list[str]:
    total, union = selection.select("label", "value").n_unique(), selection["feature"].n_unique()
    facts = [f"{several(total, 'label value')} × {several(union, 'feature')}"]
    if values < total or features < union:
        facts.append(f"shown: the first {values:,} × the largest {features:,}")
    sizes = selection["prompts"].drop_nulls().to_numpy()
    if len(sizes):
        ends = dict.fromkeys(f"{n:,}" for n in (sizes.min(), sizes.max()))
        facts.append(f"n = {' to '.join(ends)} prompts a value")
    if selection["holds"].null_count() < selection.height:
        facts.append("dot: holds under ablation")
    return facts
