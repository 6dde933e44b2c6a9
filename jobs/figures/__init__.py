"""Figures: each is a function of one stored table and computes no statistic.

To add one: write a function `(table, site) -> Figure` in this package and give it a line in `FIGURES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import polars as pl
from matplotlib.figure import Figure

from jobs.figures.attribution import draw_attribution_map
from jobs.figures.clusters import draw_map_by_cluster, draw_map_by_density
from jobs.figures.control import (
    draw_control_frequency,
    draw_control_l0,
    draw_control_max,
    draw_control_mean,
)
from jobs.figures.distributions import draw_frequency, draw_l0, draw_max_activation, draw_mean_activation
from jobs.figures.features import draw_density_and_mean, draw_sigma_over_mu
from jobs.figures.fidelity import draw_fidelity
from jobs.figures.images import (
    draw_class_images,
    draw_feature_images,
    draw_feature_places,
    draw_feature_similarity,
)
from jobs.figures.importance import draw_importance, draw_top_importance
from jobs.figures.labels import draw_label_differences
from jobs.figures.logits import draw_logit_entropy, draw_logit_max_probability
from jobs.figures.sparsity import draw_sparsity
from jobs.figures.thresholds import draw_l0_thresholds
from jobs.figures.truth import draw_truth_cosines, draw_truth_frequency, draw_truth_mean


class Drawing(NamedTuple):
    """The table that a figure shows, and the function that draws it from the table and the site's name."""

    table: str
    draw: Callable[[pl.DataFrame, str], Figure]


FIGURES = {
    "frequency": Drawing("features", draw_frequency),
    "mean_activation": Drawing("features", draw_mean_activation),
    "max_activation": Drawing("features", draw_max_activation),
    "l0": Drawing("l0", draw_l0),
    "density_and_mean": Drawing("features", draw_density_and_mean),
    "sigma_over_mu": Drawing("rankings", draw_sigma_over_mu),
    "l0_thresholds": Drawing("l0_thresholds", draw_l0_thresholds),
    "label_differences": Drawing("labels", draw_label_differences),
    "sparsity": Drawing("features", draw_sparsity),
    "feature_map_clusters": Drawing("feature_map", draw_map_by_cluster),
    "feature_map_density": Drawing("feature_map", draw_map_by_density),
    "logit_entropy": Drawing("logits_histogram", draw_logit_entropy),
    "logit_max_probability": Drawing("logits_histogram", draw_logit_max_probability),
    "fidelity": Drawing("fidelity", draw_fidelity),
    "importance": Drawing("importance", draw_importance),
    "importance_top": Drawing("importance", draw_top_importance),
    "class_images": Drawing("class_images", draw_class_images),
    "feature_images": Drawing("feature_images", draw_feature_images),
    "feature_places": Drawing("feature_images", draw_feature_places),
    "feature_similarity": Drawing("feature_similarity", draw_feature_similarity),
    "attribution_map": Drawing("attribution_selection", draw_attribution_map),
    "control_frequency": Drawing("control_features", draw_control_frequency),
    "control_mean": Drawing("control_features", draw_control_mean),
    "control_max": Drawing("control_features", draw_control_max),
    "control_l0": Drawing("control_l0", draw_control_l0),
    "truth_frequency": Drawing("truth", draw_truth_frequency),
    "truth_mean": Drawing("truth", draw_truth_mean),
    "truth_cosines": Drawing("truth_cosines", draw_truth_cosines),
}
