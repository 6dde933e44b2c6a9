"""How sparse features are: the share of zeros of each, and the magnitudes of what is not zero."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from jobs.figures.bins import whole_bars
from jobs.figures.setting import bilingual, setting
from jobs.figures.style import BLUE, SOFT, canvas, empty_plot, log_axis, log_counts, mark
from schemas.sentences import several
from schemas.values import F64

BARS = 50

BIN_SHIFT = 20
"""The feature table's histogram bins are the upper 12 bits of the float32 (`statistics.histogram`)."""


class Sparsity(NamedTuple):
    """`zeros` float64 [F]: share of zeros among `rows` of each feature; `overall`: of all entries.

    |nonzero| in bars: of even width (they begin at 0), or the feature table's bins, for a log axis.
    """

    zeros: F64
    rows: int
    overall: float
    edges: F64
    counts: F64

    def lines(self) -> list[str]:
        """The numbers in words."""
        if not len(self.zeros):
            return ["no feature"]
        target = setting().target
        aim = f" (target {target[0]:.0%} to {target[1]:.0%})" if target else ""
        return [
            f"{self.overall:.2%} zeros{aim}",
            f"per feature: mean {self.zeros.mean():.2%}, median {np.median(self.zeros):.2%}",
        ]


def draw_sparsity(features: pl.DataFrame, site: str) -> Figure:
    """Over all counted rows, from the feature table."""
    rows = int(features["counted_rows"][0]) if features.height else 0
    n_active = features["n_active"].to_numpy()
    zeros = 1 - n_active / max(rows, 1)
    edges, counts = _magnitudes(features)
    overall = 1 - float(n_active.sum()) / max(rows * features.height, 1)
    sparse = Sparsity(zeros, rows, overall, edges, counts)
    facts = [f"{several(rows, 'counted row')} × {several(features.height, 'feature')}", *sparse.lines()]
    return sparsity_figure("How sparse features are", site, facts, sparse)


def sparsity_figure(title: str, site: str, facts: list[str], sparse: Sparsity) -> Figure:
    """Two histograms side by side."""
    figure, axes = canvas(title, site, *facts)
    if not sparse.counts.sum():
        return empty_plot(axes, "no feature fired")
    axes.remove()
    left, right = figure.subplots(1, 2)
    # the share of zeros of each feature
    zeros = np.rint(sparse.zeros * sparse.rows).astype(np.int64)
    low = int(zeros.min())
    if target := setting().target:
        left.axvspan(*target, color="#F0E442", alpha=0.35, linewidth=0)
        shaded = f"shaded: target {target[0]:.0%} to {target[1]:.0%}"
        left.set_title(shaded, fontsize=10, color=SOFT, loc="left")
        low = min(low, int(target[0] * sparse.rows))
    edges = -whole_bars(-sparse.rows, -low, BARS)[::-1]  # the last bar ends with all rows
    left.hist(zeros / sparse.rows, bins=(edges / sparse.rows).tolist(), color=BLUE)
    log_counts(left.yaxis)
    mark(left, sparse.overall, f"overall {sparse.overall:.2%}")
    left.set_xlabel(bilingual("share of zeros of a feature", "특징의 0 비율", "\n"), fontsize=10)
    left.set_ylabel(bilingual("features (log scale)", "특징 수 (로그)", "\n"))
    # the magnitudes of all others, in bars that are even on a log axis unless one begins at 0
    of_bits = sparse.edges[0] > 0
    heights = sparse.counts / np.diff(np.log2(sparse.edges)) if of_bits else sparse.counts
    right.bar(sparse.edges[:-1], heights, width=np.diff(sparse.edges), align="edge", color=BLUE)
    log_counts(right.yaxis)
    if of_bits:
        log_axis(right.xaxis, sparse.edges)
    right.set_xlabel(bilingual("|activation|, where not 0", "0이 아닌 활성값", "\n"), fontsize=10)
    what, korean = ("activations per doubling", "두 배 구간당 개수") if of_bits else ("activations", "개수")
    right.set_ylabel(bilingual(f"{what} (log scale)", f"{korean} (로그)", "\n"))
    return figure


def _magnitudes(features: pl.DataFrame) -> tuple[F64, F64]:
    """All features' histograms added up, as they are, an octave in 8: edges [B + 1], counts [B]."""
    columns = ["histogram_bins", "histogram_counts"]
    cells = features.select(columns).explode(columns).drop_nulls()
    if cells.is_empty():
        return np.array([0.0, 1.0]), np.zeros(1)
    bins = cells["histogram_bins"].to_numpy().astype(np.int64)
    # a bin of negative values is numbered -1 less that of their magnitudes
    magnitude = np.where(bins < 0, -1 - bins, bins)
    counts = np.bincount(magnitude - magnitude.min(), weights=cells["histogram_counts"].to_numpy())
    # a bin's lower edge is the float32 whose upper bits its number is
    edges = np.arange(magnitude.min(), magnitude.max() + 2).astype(np.uint32) << np.uint32(BIN_SHIFT)
    return edges.view(np.float32).astype(np.float64), counts.astype(np.float64)
