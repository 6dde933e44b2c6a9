"""A known dictionary drawn by the `synthetic` package of sae-lens (6.28 and later).

FeatureDictionary makes the directions where no cosine is given, ActivationGenerator draws what fires, and
hierarchy_modifier keeps to the trees. It draws from torch's global generator: a block seeds it, and puts it
back as it was.
"""

from __future__ import annotations

import warnings
from itertools import permutations

import numpy as np
import torch
from scipy import sparse

from pipeline.synthetic.dictionary.generator import (
    DICTIONARY,
    ROWS,
    Block,
    bias_of,
    rng_of,
    rows_of_block,
    to_x,
)
from pipeline.synthetic.dictionary.numbers import magnitudes, probabilities
from pipeline.synthetic.dictionary.vectors import directions
from schemas.errors import InputError
from schemas.run.dictionary_corpus import Dictionary, Node
from schemas.values import F32

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own use of TransformerLens
    from sae_lens import synthetic

MOST_CORRELATED = 4096
"""Features whose correlations sae-lens holds as a matrix."""


class SaelensDictionary:
    """Draws by sae-lens; the noise, which it does not know, is ours."""

    def __init__(self, recipe: Dictionary) -> None:
        _check(recipe)
        self.recipe = recipe
        rng = rng_of(recipe, DICTIONARY)
        if recipe.cosine is None and not recipe.cosines:
            seed = int(rng_of(recipe, DICTIONARY, 1).integers(2**63))
            made = synthetic.FeatureDictionary(recipe.features, recipe.width, seed=seed)
            self.vectors: F32 = made.feature_vectors.detach().numpy().astype(np.float32)
        else:
            self.vectors = directions(recipe, rng)
        self.bias: F32 = bias_of(recipe, rng)
        mean, std = magnitudes(recipe)
        trees, correlations = [_node(tree) for tree in recipe.trees], None
        if recipe.correlated:
            # sae-lens takes all features at once; those of no group stay uncorrelated
            correlations = torch.eye(recipe.features)
            for group in recipe.correlated:
                for a, b in permutations(group.features, 2):
                    correlations[a, b] = group.correlation
        self._generator = synthetic.ActivationGenerator(
            recipe.features,
            _tensor(probabilities(recipe)),
            std_firing_magnitudes=_tensor(std),
            mean_firing_magnitudes=_tensor(mean),
            modify_activations=synthetic.hierarchy_modifier(trees) if trees else None,
            correlation_matrix=correlations,
        )

    def block(self, number: int) -> Block:
        """See `pipeline.synthetic.dictionary.generator.DictionaryGenerator`."""
        rng, rows = rng_of(self.recipe, ROWS, number), rows_of_block(self.recipe)
        # sae-lens draws from the global generator, which is put back as it was
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            values = sparse.csr_matrix(self._generator.sample(rows).numpy())
        return Block(number * rows, values, to_x(values, self.vectors, self.bias, self.recipe.noise, rng))


def _check(recipe: Dictionary) -> None:
    """InputError for what sae-lens means otherwise, or cannot do."""
    if recipe.correlated and recipe.features > MOST_CORRELATED:
        raise InputError(
            f"corpus.dictionary.correlated: sae-lens needs a matrix of {recipe.features:,} squared entries, "
            f"more than {MOST_CORRELATED:,}: use generator: latentlake"
        )
    pending = list(recipe.trees)
    while pending:
        node = pending.pop()
        if node.exclusive and any(child.feature is None for child in node.children):
            raise InputError(
                f"corpus.dictionary.trees: node {node.label} is exclusive and has a child without a feature, "
                "which sae-lens leaves out of the exclusion: use generator: latentlake"
            )
        pending.extend(node.children)


def _node(node: Node) -> synthetic.HierarchyNode:
    return synthetic.HierarchyNode(
        feature_index=node.feature,
        children=[_node(child) for child in node.children],
        mutually_exclusive_children=node.exclusive,
    )


def _tensor(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32))
