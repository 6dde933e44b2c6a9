"""Bars over whole numbers: each holds a whole number of them, and no distribution gets peaks it has not."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from matplotlib import rc_context

from jobs.figures import FIGURES
from jobs.figures.bins import log_bars, whole_bars
from jobs.figures.heatmap import draw_matrix_sparsity
from jobs.figures.style import STYLE


def whole_values(edges):
    """How many whole numbers each bar holds, and whether every edge lies halfway between two."""
    assert (np.asarray(edges) % 1 == 0.5).all()
    return np.diff(edges)


@pytest.mark.parametrize(
    ("low", "high", "most"), [(0, 0, 50), (0, 9, 50), (3, 3000, 120), (0, 100, 50), (7, 8, 1)]
)
def test_bars_of_one_width_hold_the_same_whole_number_of_values(low, high, most):
    edges = whole_bars(low, high, most)
    assert len(set(whole_values(edges))) == 1
    assert len(edges) - 1 <= most
    assert edges[0] == low - 0.5
    assert high + 0.5 <= edges[-1] < high + 0.5 + edges[1] - edges[0]


@pytest.mark.parametrize(
    ("low", "high", "ratio"), [(0, 0, 1.2), (0, 24576, 1.23), (1, 7, 1.0), (40, 90, 1.02)]
)
def test_bars_of_a_log_axis_hold_whole_numbers_and_grow(low, high, ratio):
    edges = log_bars(low, high, ratio)
    held = whole_values(edges)
    assert held[0] == 1
    assert (edges[0], edges[-1] >= high + 0.5) == (low - 0.5, True)
    assert (held >= 1).all()
    assert (np.diff(held) >= -1).all()  # of rounding


def rises_and_falls(heights):
    """How often a histogram turns from rising to falling: its peaks."""
    steps = np.sign(np.diff(np.concatenate([[0.0], heights, [0.0]])))
    return int(((steps[:-1] > 0) & (steps[1:] < 0)).sum())


def smooth(most, middle):
    """Rows over L0 0 .. most with one broad peak, in whole rows."""
    l0 = np.arange(most + 1)
    return l0, np.rint(1e6 * np.exp(-(((np.log2(l0 + 1) - np.log2(middle)) / 1.2) ** 2))).astype(np.int64)


@pytest.mark.parametrize("middle", [4, 20, 300])
def test_l0_of_a_control_has_the_peaks_of_its_rows_and_no_other(middle):
    l0, rows = smooth(2000, middle)
    parts = [
        pl.DataFrame({"of": of, "threshold": 0.0, "l0": l0, "rows": rows}) for of in ("learnt", "control")
    ]
    with rc_context(STYLE):
        axes = FIGURES["control_l0"].draw(pl.concat(parts), "l9").axes[0]
    values, edges, _ = axes.patches[0].get_data()
    whole_values(np.round(2**edges - 1, 6))
    assert rises_and_falls(values) == 1
    areas = values * np.diff(edges)
    held = np.histogram(l0, np.round(2**edges - 1, 6), weights=rows)[0]
    np.testing.assert_allclose(areas / areas.sum(), held / held.sum())


def test_frequencies_of_few_active_rows_have_no_gaps_and_their_areas_are_features():
    n = np.repeat(np.arange(1, 400), np.maximum(1, 4000 // np.arange(1, 400)))  # even over the log axis
    features = pl.DataFrame({"n_active": n, "frequency": n / 10_000, "counted_rows": 10_000})
    with rc_context(STYLE):
        axes = FIGURES["frequency"].draw(features, "l9").axes[0]
    edges = np.array([bar.get_x() for bar in axes.patches])
    whole_values(np.round(edges * 10_000, 6))
    heights = np.array([bar.get_height() for bar in axes.patches])[:-1]
    assert (heights > 0).all()
    assert heights[:40].max() / heights[:40].min() < 1.6
    assert axes.get_ylabel() == "features per decade (area of a bar)"


@pytest.mark.parametrize("contexts", [7, 60, 137])
def test_shares_of_zeros_of_few_contexts_fall_into_bars_of_as_many_values(contexts):
    matrix = np.tril(np.ones((contexts, contexts)))  # one feature with each share of zeros
    table = pl.DataFrame(matrix, schema=[str(n) for n in range(contexts)]).with_columns(
        context=pl.int_range(pl.len()), cluster=None
    )
    with rc_context(STYLE):
        left = draw_matrix_sparsity(table, "l9", "max").axes[0]
    heights = [round(bar.get_height()) for bar in left.patches if bar.get_height()]
    assert sum(heights) == contexts
    assert len(set(heights[1:-1])) <= 1  # the first reaches below the fewest zeros, the last has all rows
    assert left.patches[-1].get_x() + left.patches[-1].get_width() == pytest.approx(1 + 0.5 / contexts)
