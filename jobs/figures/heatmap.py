"""Contexts × features as a picture, plain or clustered; how often its features are active.

Each figure is a function of the table that `latentlake heatmap` writes: a row per context in the order in
which they are drawn, `context`, `cluster` (null: not clustered), labels, and a column for each feature,
named by its number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from jobs.figures.names import feature_labels
from jobs.figures.setting import bilingual
from jobs.figures.sparsity import BARS, Sparsity, sparsity_figure
from jobs.figures.style import BLUE, INK, SIZE, canvas, colour_bar, empty_plot, name_some
from schemas.sentences import several
from schemas.values import F32

SQUARE = (9.0, 7.5)
RED = "#E3000F"

TICKS = 50
"""Features, or contexts, whose numbers are written, at most."""

LONGEST = 16
"""Characters of a feature's name."""

BRIGHTEST = 99
"""Percentile of |activation| at which colours end, of what is not 0."""


def features_of(table: pl.DataFrame) -> list[str]:
    """The columns that are features."""
    return [name for name in table.columns if name.isdigit()]


def matrix_of(table: pl.DataFrame) -> F32:
    """Activations float32 [contexts, features]."""
    return table.select(features_of(table)).to_numpy().astype(np.float32)


def draw_plain(table: pl.DataFrame, site: str, pool: str) -> Figure:
    """Contexts in order of their numbers."""
    title = bilingual("Contexts × features", "문맥 × 특징 활성화")
    return _draw(table.sort("context").with_columns(cluster=None), title, site, pool)


def draw_clustered(table: pl.DataFrame, site: str, pool: str) -> Figure:
    """Contexts by cluster, red lines between clusters, each with its name and its number of contexts."""
    title = bilingual("Contexts × features, clustered", "문맥 × 특징, 군집별")
    return _draw(table, title, site, pool)


def _draw(table: pl.DataFrame, title: str, site: str, pool: str) -> Figure:
    matrix, features = matrix_of(table), features_of(table)
    facts = [f"{several(len(matrix), 'context')} × {several(len(features), 'feature')}", pool]
    figure, axes = canvas(title, site, *facts, size=SQUARE)
    if not matrix.size:
        return empty_plot(axes, "no context or no feature")
    # colours end below the largest: one far activation must not make all others pale
    values, signed = np.abs(matrix[matrix != 0]), bool((matrix < 0).any())
    limit = float(np.percentile(values, BRIGHTEST, method="higher")) if len(values) else 1.0
    image = axes.imshow(
        matrix,
        aspect="auto",
        cmap="PuOr_r" if signed else "Blues",
        vmin=-limit if signed else 0.0,
        vmax=limit,
        interpolation="nearest" if len(matrix) < SQUARE[1] * 100 else "antialiased",
        rasterized=True,
    )
    axes.grid(visible=False)
    _ticks(axes, features, table["context"].to_list(), clustered=table["cluster"].dtype != pl.Null)
    if table["cluster"].dtype != pl.Null:
        # a red line at each border: a cluster begins where its number is another than that of the row above
        clusters = table["cluster"].to_numpy()
        starts = np.flatnonzero(np.append(True, clusters[1:] != clusters[:-1]))
        ends = np.append(starts[1:], len(clusters))
        for start in starts[1:]:
            axes.axhline(start - 0.5, color=RED, linewidth=1.4)
        names = [f"C{clusters[start]} (n={end - start:,})" for start, end in zip(starts, ends, strict=True)]
        axes.set_yticks((starts + ends - 1) / 2, names, fontsize=10, color=INK)
    where = f"{BRIGHTEST}th percentile of nonzero values" if np.abs(matrix).max() > limit else "the largest"
    label = bilingual(f"activation (colours end at the {where})", "활성값")
    colour_bar(
        figure, image, ax=axes, label=label, pad=0.02, extend="max" if where[0].isdigit() else "neither"
    )
    return figure


def _ticks(axes: Axes, features: list[str], contexts: list[int], *, clustered: bool) -> None:
    labels = feature_labels([int(name) for name in features], LONGEST)
    name_some(axes.xaxis, labels, TICKS, bilingual("feature", "특징"), rotation=90, fontsize=7)
    if clustered:
        axes.set_yticks([])
        return
    name_some(axes.yaxis, [str(n) for n in contexts], TICKS, bilingual("context", "문맥"), fontsize=7)


def draw_matrix_sparsity(table: pl.DataFrame, site: str, pool: str) -> Figure:
    """Share of zeros in the picture, feature by feature, and magnitudes of the rest."""
    sparse = sparsity_of(matrix_of(table))
    facts = [
        f"{several(table.height, 'context')} × {several(len(sparse.zeros), 'feature')}",
        pool,
        *sparse.lines(),
    ]
    return sparsity_figure(bilingual("Sparsity", "희소성"), site, facts, sparse)


def sparsity_of(matrix: F32) -> Sparsity:
    """Of activations [contexts, features]."""
    values = np.abs(matrix[matrix != 0]).astype(np.float64)
    counts, edges = np.histogram(values, bins=BARS, range=(0, float(values.max(initial=0)) or 1.0))
    zeros = (matrix == 0).mean(axis=0) if len(matrix) else np.ones(matrix.shape[1])
    overall = float((matrix == 0).mean()) if matrix.size else 1.0
    return Sparsity(zeros, max(len(matrix), 1), overall, edges, counts.astype(np.float64))


def draw_frequencies(table: pl.DataFrame, site: str, pool: str) -> Figure:
    """The share of the contexts in which each feature is active, as bars; their mean dashed."""
    title = bilingual("How often these features are active", "선택된 특징의 빈도")
    active = (matrix_of(table) != 0).mean(axis=0) if table.height else np.zeros(0)
    facts = [several(table.height, "context"), *([frequency_summary(active)] if len(active) else []), pool]
    figure, axes = canvas(title, site, *facts, size=(SQUARE[0], SIZE[1]))
    if not len(active):
        return empty_plot(axes, "no context or no feature")
    axes.bar(range(len(active)), active, color=BLUE, width=0.85)
    axes.axhline(
        active.mean(), color=RED, linestyle=(0, (5, 3)), linewidth=1.6, label=f"mean {active.mean():.3g}"
    )
    axes.legend(loc="upper right")
    axes.margins(x=0.01, y=0.15)
    _ticks(axes, features_of(table), [], clustered=True)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.set_ylabel(bilingual("share of contexts", "문맥 비율"))
    return figure


def frequency_summary(active: NDArray[Any]) -> str:
    """Mean, median, smallest and largest of the shares [F]."""
    numbers = {"mean": active.mean(), "median": np.median(active), "min": active.min(), "max": active.max()}
    return "active in: " + ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())
