"""Figures: each is a function of one stored table and computes no statistic.

To add one: write a function `(table, site) -> Figure` in this package and give it a line in `FIGURES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import polars as pl
from matplotlib.figure import Figure

from jobs.figures.control import (
    draw_control_frequency,
    draw_control_l0,
    draw_control_max,
    draw_control_mean,
)
from jobs.figures.distributions import draw_frequency, draw_l0, draw_mean_activation
from jobs.figures.features import draw_density_and_mean, draw_sigma_over_mu


class Drawing(NamedTuple):
    """The table that a figure shows, and the function that draws it from the table and the site's name."""

    table: str
    draw: Callable[[pl.DataFrame, str], Figure]
    optional: bool = False
    """Drawn when its table is there; without the table of any other figure nothing is drawn."""


FIGURES = {
    "frequency": Drawing("features", draw_frequency),
    "mean_activation": Drawing("features", draw_mean_activation),
    "l0": Drawing("l0", draw_l0),
    "density_and_mean": Drawing("features", draw_density_and_mean),
    "sigma_over_mu": Drawing("rankings", draw_sigma_over_mu),
    "control_frequency": Drawing("control_features", draw_control_frequency, optional=True),
    "control_mean": Drawing("control_features", draw_control_mean, optional=True),
    "control_max": Drawing("control_features", draw_control_max, optional=True),
    "control_l0": Drawing("control_l0", draw_control_l0, optional=True),
}
