"""Rows of a known dictionary, drawn by blocks of documents; a block depends on recipe and number alone.

Shapes: N rows of a block, F features, D entries of a vector. A block costs some N F random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
from numpy.random import Generator, Philox, SeedSequence
from scipy import sparse, special

from pipeline.synthetic.dictionary.numbers import magnitudes, probabilities
from pipeline.synthetic.dictionary.trees import fire
from pipeline.synthetic.dictionary.vectors import directions
from schemas.run.dictionary_corpus import Dictionary
from schemas.values import F32, F64, Bool

VERSION = 1
"""Of what is drawn from the same recipe."""

DICTIONARY, ROWS = 0, 1
"""Streams of random numbers."""

_ENTRIES = 1 << 21
"""Random numbers of a block, about."""


class Block(NamedTuple):
    """Rows of some documents: `first` numbers the first row over the corpus.

    `values` csr float32 [N, F], the features that fire; `x` float32 [N, D].
    """

    first: int
    values: sparse.csr_matrix
    x: F32


class DictionaryGenerator(Protocol):
    """What draws rows: this module's, or sae-lens'."""

    recipe: Dictionary
    vectors: F32
    """Directions, float32 [F, D]."""
    bias: F32
    """float32 [D]."""

    def block(self, number: int) -> Block:
        """One block; there are `blocks_of(recipe)`."""
        ...


def rng_of(recipe: Dictionary, stream: int, number: int = 0) -> Generator:
    """Random numbers of a part of what is drawn (Philox, J. Salmon et al., SC 2011)."""
    return Generator(Philox(SeedSequence(recipe.seed, spawn_key=(VERSION, stream, number))))


def documents_of_block(recipe: Dictionary) -> int:
    """Documents drawn at once."""
    return max(1, _ENTRIES // (max(recipe.features, recipe.width) * recipe.rows))


def blocks_of(recipe: Dictionary) -> int:
    """How many blocks hold all documents; the last one may hold more than there are."""
    return -(-recipe.documents // documents_of_block(recipe))


def rows_of_block(recipe: Dictionary) -> int:
    """Rows drawn at once."""
    return documents_of_block(recipe) * recipe.rows


class NumpyDictionary:
    """Draws by NumPy."""

    def __init__(self, recipe: Dictionary) -> None:
        self.recipe = recipe
        rng = rng_of(recipe, DICTIONARY)
        self.vectors: F32 = directions(recipe, rng)
        self.bias: F32 = bias_of(recipe, rng)
        self._p = probabilities(recipe)
        self._mean, self._std = magnitudes(recipe)
        self._roots = list[F64]()
        for group in recipe.correlated:
            # the Cholesky factor L: L z of independent normal numbers z has the group's correlations
            correlations = np.full([len(group.features)] * 2, group.correlation)
            np.fill_diagonal(correlations, 1.0)
            self._roots.append(np.linalg.cholesky(correlations))

    def block(self, number: int) -> Block:
        """See `DictionaryGenerator`."""
        rng, rows = rng_of(self.recipe, ROWS, number), rows_of_block(self.recipe)
        values = self._values(rng, rows)
        return Block(number * rows, values, to_x(values, self.vectors, self.bias, self.recipe.noise, rng))

    def _values(self, rng: Generator, rows: int) -> sparse.csr_matrix:
        would: Bool = rng.random((rows, self.recipe.features)) < self._p
        for group, root in zip(self.recipe.correlated, self._roots, strict=True):
            # a normal number above its quantile has the wanted probability, whatever it is correlated with
            features = list(group.features)
            normal = rng.standard_normal((rows, len(features))) @ root.T
            would[:, features] = normal > -special.ndtri(self._p[features])
        # values come before trees: a value that is not above 0 is none, and nothing fires below it
        row, feature = np.nonzero(would)
        drawn = self._mean[feature] + self._std[feature] * rng.standard_normal(len(feature))
        would[row, feature] = drawn.astype(np.float32) > 0
        fires = fire(self.recipe.trees, would, rng)
        drawn = np.where(fires[row, feature], drawn, 0).astype(np.float32)
        values = sparse.csr_matrix((drawn, (row, feature)), shape=would.shape)
        values.eliminate_zeros()
        return values


def bias_of(recipe: Dictionary, rng: Generator) -> F32:
    """A random vector of the length requested, float32 [D]."""
    drawn = rng.standard_normal(recipe.width)
    return (recipe.bias * drawn / np.linalg.norm(drawn)).astype(np.float32)


def to_x(values: sparse.csr_matrix, vectors: F32, bias: F32, noise: float, rng: Generator) -> F32:
    """X float32 [N, D]: the values' sum over directions, in the order of features, bias and noise."""
    x: F32 = np.asarray(values @ vectors, dtype=np.float32) + bias
    if noise:
        x += np.float32(noise) * rng.standard_normal(x.shape, dtype=np.float32)
    return x


def all_blocks(generator: DictionaryGenerator) -> Iterator[Block]:
    """All rows of the corpus, in order."""
    total = generator.recipe.documents * generator.recipe.rows
    for number in range(blocks_of(generator.recipe)):
        block = generator.block(number)
        rows = min(block.values.shape[0], total - block.first)
        yield Block(block.first, block.values[:rows], block.x[:rows])
