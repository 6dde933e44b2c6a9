"""The histogram of a feature's activations: where its bars and ticks stand. The page draws it as an SVG."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from jobs.report.page import number
from pipeline.statistics.features.histogram import bin_edges
from schemas.values import F64

WIDTH, HEIGHT, BASE = 640, 150, 128
"""Of the drawing, and of what lies above its axis, in its own units."""
TICKS = 12


def histogram(bins: Sequence[int], counts: Sequence[int]) -> dict[str, Any]:
    """Bars over log2 of |activation|, negative ones to the left; a bar's area is its count.

    `bins` and `counts` are those of the feature table (`pipeline.statistics.features.histogram`). `bars` are
    left end, top, width, title and 1 where activations are negative; `ticks` place and text.
    """
    left, right = bin_edges(np.array(bins, np.int16))
    # On a scale of octaves 0 is infinitely far: the edge nearest to it stands for it.
    near = float(min(np.abs(left).min(), np.abs(right).min()))
    low, high = _place(left, near), _place(right, near)
    scale = WIDTH / max(float(high.max() - low.min()), 0.5)
    # Bins part an octave evenly, so their logarithms are uneven: counts per width make areas compare.
    height = np.array(counts) / (high - low)
    tops = BASE - (BASE - 6) * height / height.max()
    x = (low - low.min()) * scale
    widths = np.maximum((high - low) * scale - 1, 0.6)
    places = (np.round(values, 1).tolist() for values in (x, tops, widths))
    titles = (
        f"{number(begin)} to {number(end)}: {count:,}"
        for begin, end, count in zip(left.tolist(), right.tolist(), counts, strict=True)
    )
    return {
        "size": [WIDTH, HEIGHT, BASE],
        "label": f"Histogram of activations from {number(float(left.min()))} to {number(float(right.max()))}",
        "bars": list(zip(*places, titles, (right <= 0).astype(int).tolist(), strict=True)),
        "ticks": _ticks(left, right, near, float(low.min()), scale),
    }


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
