"""Numbers of a recipe, one for each feature."""

from __future__ import annotations

import numpy as np

from schemas.run.dictionary_corpus import Dictionary, Numbers, Spread
from schemas.values import F64


def each(value: Numbers, features: int) -> F64:
    """float64 [F], whatever way they are given."""
    if isinstance(value, Spread):
        return np.geomspace(value.first, value.last, features)
    return np.broadcast_to(np.asarray(value, np.float64), features).copy()


def probabilities(recipe: Dictionary) -> F64:
    """That each feature fires, before values and trees."""
    return each(recipe.probability, recipe.features)


def magnitudes(recipe: Dictionary) -> tuple[F64, F64]:
    """Mean and standard deviation of the normal numbers that values are."""
    return each(recipe.magnitude, recipe.features), each(recipe.magnitude_std, recipe.features)
