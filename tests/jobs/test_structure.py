"""Similarity, map and agreement equal scikit-learn's and SciPy's on the same arrays."""

from __future__ import annotations

import numpy as np
from scipy.stats import pearsonr
from sklearn.manifold import TSNE
from sklearn.metrics.pairwise import cosine_distances, cosine_similarity

from jobs.tables.pairs.structure import agreement, places
from jobs.tables.pairs.structure import cosine_similarity as ours


def vectors(n: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 9))


def test_cosines_are_scikit_learns_and_a_vector_of_zeros_has_none() -> None:
    some = np.vstack([vectors(), np.zeros((1, 9))])
    np.testing.assert_allclose(ours(some), cosine_similarity(some), atol=1e-12)
    assert not ours(some)[-1].any()


def test_the_map_is_tsne_of_the_distance_matrix() -> None:
    some = vectors(15)
    distance = cosine_distances(some)
    np.fill_diagonal(distance, 1 - np.diag(ours(some)))  # scikit-learn sets it to 0; here it is 0 to a bit
    expected = TSNE(n_components=2, init="pca", perplexity=3, random_state=42).fit_transform(1 - ours(some))
    np.testing.assert_allclose(places(ours(some)), expected)
    np.testing.assert_allclose(1 - ours(some), distance, atol=1e-12)
    assert np.isnan(places(ours(vectors(3)))).all()


def test_agreement_is_pearsons_with_the_diagonal() -> None:
    a, b = ours(vectors(seed=0)), ours(vectors(seed=0) + 0.7 * vectors(seed=1))
    assert abs(agreement(a, b) - pearsonr((1 - a).ravel(), (1 - b).ravel()).statistic) < 1e-12
    above = np.triu_indices(len(a), 1)
    assert abs(agreement(a, b) - pearsonr(a[above], b[above]).statistic) > 1e-3
    assert np.isnan(agreement(np.ones((4, 4)), a[:4, :4]))
