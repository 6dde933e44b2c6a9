"""Directions of given cosines.

A Gram matrix G of unit vectors is G = L L^T; the rows of L times orthonormal rows Q have the same cosines in
more dimensions. Eigenvectors serve where G has no full rank.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from schemas.dictionary_corpus import Dictionary
from schemas.errors import InputError
from schemas.values import F32, F64

_TOLERANCE = 1e-9


def directions(recipe: Dictionary, rng: Generator) -> F32:
    """Unit vectors float32 [F, D], random ones or of the cosines asked for.

    InputError where no vectors have these cosines, or need more entries than `width`.
    """
    shape = recipe.features, recipe.width
    if recipe.cosine is None and not recipe.cosines:
        rows = rng.standard_normal(shape)
        units: F32 = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        return units
    root = _root(gram(recipe))
    if root.shape[1] > recipe.width:
        raise InputError(
            f"corpus.dictionary: {recipe.features} directions of these cosines need {root.shape[1]} entries, "
            f"width is {recipe.width}: make it larger, or leave out cosine for random directions"
        )
    basis, _ = np.linalg.qr(rng.standard_normal((recipe.width, root.shape[1])))
    found: F32 = (root @ basis.T).astype(np.float32)
    return found


def gram(recipe: Dictionary) -> F64:
    """The cosines asked for, float64 [F, F]."""
    matrix = np.full((recipe.features, recipe.features), recipe.cosine or 0.0)
    np.fill_diagonal(matrix, 1.0)
    for pair in recipe.cosines:
        a, b = pair.features
        matrix[a, b] = matrix[b, a] = pair.cosine
    return matrix


def _root(matrix: F64) -> F64:
    """L [F, rank] with L L^T = G; InputError where there is none."""
    values, vectors = np.linalg.eigh(matrix)
    if values[0] < -_TOLERANCE * len(matrix):
        raise InputError(
            "corpus.dictionary: no directions have all of these cosines (their matrix has the eigenvalue "
            f"{values[0]:.3g}): make the cosines smaller"
        )
    kept = values > _TOLERANCE * len(matrix)
    root: F64 = vectors[:, kept] * np.sqrt(values[kept])
    return root
