"""How features lie to each other: cosine similarity, a map by t-SNE, and how far two such pictures agree.

n features, D numbers of each (values of x, or pixels).
"""

from __future__ import annotations

import numpy as np
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from schemas.values import F64

PERPLEXITY, SEED = 3, 42
"""Of the notebook that this comes from."""


def cosine_similarity(vectors: F64) -> F64:
    """Cosines [n, n] of vectors [n, D]; 0 with a vector that is 0, 1 on the diagonal elsewhere."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    cosines: F64 = np.clip(units @ units.T, -1, 1)
    return cosines


def places(similarity: F64) -> F64:
    """Where each feature lies in the plane [n, 2]: t-SNE of the rows of the cosine distance matrix.

    Two components, init pca, perplexity 3, random_state 42. NaN where there are too few features for that.
    """
    n = len(similarity)
    if n <= PERPLEXITY:
        return np.full((n, 2), np.nan)
    tsne = TSNE(n_components=2, init="pca", perplexity=PERPLEXITY, random_state=SEED)
    with threadpool_limits(1):
        coordinates: F64 = tsne.fit_transform(1 - similarity).astype(np.float64)
    return coordinates


def agreement(one: F64, other: F64) -> float:
    """Pearson's correlation of two flattened distance matrices [n, n], the diagonal included; NaN where one
    of them has but one value.
    """
    a, b = ((1 - similarity).ravel() for similarity in (one, other))
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
