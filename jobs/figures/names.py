"""What stands for a feature in a figure: its number and, where the command knows the store, its name."""

from __future__ import annotations

from collections.abc import Sequence

from jobs.figures.fonts import cut, legible
from jobs.figures.setting import setting


def feature_names(features: Sequence[int], most: int) -> list[str]:
    """The name of each as a font can write it, at most `most` characters of it; empty where there is none."""
    if (read := setting().names) is None:
        return [""] * len(features)
    names = read(features)
    return [cut(legible(names.get(feature, "")), most) for feature in features]


def feature_labels(features: Sequence[int], most: int) -> list[str]:
    """The number of each, and its name."""
    pairs = zip(features, feature_names(features, most), strict=True)
    return [f"{feature} {name}" if name else f"{feature}" for feature, name in pairs]
