"""Directions of given cosines.

A Gram matrix G of unit vectors is G = L L^T; the rows of L times orthonormal rows Q have the same cosines in
more dimensions. L is Cholesky's, for that is unique (G. Golub, C. Van Loan, Matrix Computations, 4th edition
2013, theorem 4.2.7): eigenvectors of equal eigenvalues are whatever the processor and its threads make them.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from numpy.random import Generator
from threadpoolctl import threadpool_limits

from schemas.errors import InputError
from schemas.run.dictionary_corpus import Dictionary
from schemas.values import F32, F64

_TOLERANCE = 1e-10
"""Of a squared length that is taken for 0; cosines are then exact to its root."""


def directions(recipe: Dictionary, rng: Generator) -> F32:
    """Unit vectors float32 [F, D], random ones or of the cosines requested.

    InputError where no vectors have these cosines, or need more entries than `width`.
    """
    shape = recipe.features, recipe.width
    if recipe.cosine is None and not recipe.cosines:
        rows = rng.standard_normal(shape)
        units: F32 = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        return units
    with threadpool_limits(1):
        root = _root(gram(recipe)) if recipe.cosine or recipe.cosines else None
        rank = recipe.features if root is None else root.shape[1]
        if rank > recipe.width:
            raise InputError(
                f"corpus.dictionary: {recipe.features} directions of these cosines need {rank} entries, "
                f"width is {recipe.width}: make it larger, or leave out cosine for random directions"
            )
        # with one thread: the sums of a factorisation are cut by the threads, and bits with them
        basis, _ = np.linalg.qr(rng.standard_normal((recipe.width, rank)))
        vectors: F32 = (basis.T if root is None else root @ basis.T).astype(np.float32, order="C")
    return vectors


def gram(recipe: Dictionary) -> F64:
    """The cosines requested, float64 [F, F]."""
    matrix = np.full((recipe.features, recipe.features), recipe.cosine or 0.0)
    np.fill_diagonal(matrix, 1.0)
    for pair in recipe.cosines:
        a, b = pair.features
        matrix[a, b] = matrix[b, a] = pair.cosine
    return matrix


def _root(matrix: F64) -> F64:
    """L [F, rank], lower triangular, with L L^T = G; InputError where there is none."""
    with suppress(np.linalg.LinAlgError):
        whole: F64 = np.asarray(np.linalg.cholesky(matrix), np.float64)
        if whole.diagonal().min() ** 2 > _TOLERANCE:
            return whole
    # column by column, without the columns that would be 0; no pivots, for equal ones are a tie
    root, rank = np.zeros_like(matrix), 0
    for row in range(len(matrix)):
        # what is left of this column of G after the columns of L so far; its first entry is a square
        rest = matrix[row:, row] - root[row:, :rank] @ root[row, :rank]
        if rest[0] > _TOLERANCE:
            root[row:, rank] = rest / np.sqrt(rest[0])
            rank += 1
        elif np.abs(rest).max() > np.sqrt(_TOLERANCE):
            raise InputError(
                f"corpus.dictionary: no directions have all of these cosines (those of feature {row} are "
                "impossible): make the cosines smaller"
            )
    return root[:, :rank]
