"""The histograms of a feature's page: where bars and ticks stand. The page draws them as SVG.

Of each: `size`, the drawing's width and height, the height of its axis, and the margin at its left; `bars`,
left end, top, width, title and 1 where what is counted is negative; `ticks` along the axis and `heights`
above it, place and text; `axes`, what both measure; `label`, what it is for those who do not see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from jobs.report.page import number
from pipeline.statistics.features.histogram import bin_edges
from schemas.values import F64

WIDTH, HEIGHT, BASE, LEFT, TOP = 640, 150, 128, 48, 6
"""Of the drawing, in its own units: its axis lies at BASE, the highest bar ends at TOP."""
TICKS, HEIGHTS = 12, 3
"""Texts along the axis, and above it, at most."""


def histogram(bins: Sequence[int], counts: Sequence[int]) -> dict[str, Any]:
    """Bars over log2 of |activation|, negative ones to the left; a bar's area is its count.

    `bins` and `counts` are those of the feature table (`pipeline.statistics.features.histogram`).
    """
    left, right = bin_edges(np.array(bins, np.int16))
    # On a scale of octaves 0 is infinitely far: the edge nearest to it stands for it.
    near = float(min(np.abs(left).min(), np.abs(right).min()))
    low, high = _place(left, near), _place(right, near)
    scale = WIDTH / max(float(high.max() - low.min()), 0.5)
    # Bins part an octave evenly, so their logarithms are uneven: counts per width make areas compare.
    height = np.array(counts) / (high - low)
    tops = BASE - (BASE - TOP) * height / height.max()
    x = (low - low.min()) * scale
    widths = np.maximum((high - low) * scale - 1, 0.6)
    places = (np.round(values, 1).tolist() for values in (x, tops, widths))
    titles = (
        f"{number(begin)} to {number(end)}: {count:,}"
        for begin, end, count in zip(left.tolist(), right.tolist(), counts, strict=True)
    )
    return {
        "size": [WIDTH, HEIGHT, BASE, LEFT],
        "label": f"Histogram of activations from {number(float(left.min()))} to {number(float(right.max()))}",
        "bars": list(zip(*places, titles, (right <= 0).astype(int).tolist(), strict=True)),
        "ticks": _ticks(left, right, near, float(low.min()), scale),
        "heights": _heights(float(height.max())),
        "axes": "rows per octave, by activation",
    }


def over_vocabulary(low: float, high: float, counts: Sequence[int]) -> dict[str, Any]:
    """Tokens by a feature's effect on their logits: even bins from `low` to `high`."""
    edges = np.linspace(low, high, len(counts) + 1)
    width = WIDTH / len(counts)
    # a bar of few tokens stays visible, for the ends are what matters
    heights = np.where(counts, np.maximum((BASE - TOP) * np.array(counts) / max(counts), 1), 0)
    titles = (
        f"{number(begin)} to {number(end)}: {count:,}"
        for begin, end, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts, strict=True)
    )
    x = np.round(width * np.arange(len(counts)), 1).tolist()
    tops, negative = np.round(BASE - heights, 1).tolist(), (edges[1:] <= 0).astype(int).tolist()
    bars = zip(x, tops, [round(width - 1, 1)] * len(counts), titles, negative, strict=True)
    step = _step((high - low) / TICKS)
    ticks = step * np.arange(np.ceil(low / step), np.floor(high / step) + 1) + 0.0  # no -0
    places = np.round(np.clip((ticks - low) / (high - low) * WIDTH, 12, WIDTH - 12), 1).tolist()
    return {
        "size": [WIDTH, HEIGHT, BASE, LEFT],
        "label": f"Histogram of effects on the logits of all tokens, from {number(low)} to {number(high)}",
        "bars": list(bars),
        "ticks": [(place, f"{value:.3g}") for place, value in zip(places, ticks.tolist(), strict=True)],
        "heights": _heights(max(counts)),
        "axes": "tokens, by the effect on their logits",
    }


def _step(least: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** np.floor(np.log10(least))
    return float(next(size * power for size in (1, 2, 5, 10) if size * power >= least * 0.999))


def _heights(most: float) -> list[tuple[float, str]]:
    """Round values up the side with their places, where the highest bar is `most`."""
    step = _step(most / HEIGHTS)
    values = step * np.arange(1, np.floor(most / step) + 1)
    places = np.round(BASE - (BASE - TOP) * values / most, 1).tolist()
    return [(place, f"{value:,.10g}") for place, value in zip(places, values.tolist(), strict=True)]


def _place(edges: F64, near: float) -> F64:
    """Where an edge stands: octaves from the edge nearest to 0, half an octave off the middle."""
    places: F64 = np.sign(edges) * (np.log2(np.maximum(np.abs(edges), near) / near) + 0.25)
    return places


def _ticks(left: F64, right: F64, near: float, origin: float, scale: float) -> list[tuple[float, str]]:
    """Round values along the axis with their places, those that leave room for each other."""
    most = float(max(np.abs(left).max(), np.abs(right).max()))
    # Candidates are 1, 2, ..., 9 times each power of ten, on both sides of 0.
    decades = np.arange(np.floor(np.log10(near)), np.ceil(np.log10(most)) + 1)
    sizes = np.unique(np.outer(10.0**decades, np.arange(1, 10)).ravel())
    values = np.concatenate([-sizes[::-1], sizes])
    values = values[
        (values >= left.min() * 0.999) & (values <= right.max() * 1.001) & (np.abs(values) >= near)
    ]
    places = (_place(values, near) - origin) * scale
    # From the left each one that is far enough from the last one kept.
    kept = [0] if len(values) else []
    for number_, (_, place) in enumerate(pairwise(places), start=1):
        if place - places[kept[-1]] >= WIDTH / TICKS:
            kept.append(number_)
    kept_places = np.round(np.clip(places[kept], 12, WIDTH - 12), 1).tolist()
    return [(place, f"{value:.3g}") for place, value in zip(kept_places, values[kept], strict=True)]
