"""Who is who by cosine: the literal order of sae-lens, and the best one-to-one assignment."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from jobs.studies.known.matching import (
    assigned,
    best_order,
    cosines_with,
    literal_order,
    literal_score,
    uniqueness,
)
from schemas.errors import InputError


def directions(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def noisy(true: np.ndarray, noise: float, seed: int) -> np.ndarray:
    """The true directions in another order, of other lengths and signs, with noise."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.5, 2, (len(true), 1)) * rng.choice([-1, 1], (len(true), 1))
    rows = scale * (true + noise * rng.standard_normal(true.shape))
    return rows[rng.permutation(len(true))].astype(np.float32)


def test_cosines_are_those_of_unit_vectors_and_0_without_a_direction():
    rows, true = directions(5, 8, 0), directions(7, 8, 1)
    rows[3] = 0
    expected = [
        [0 if not x.any() else x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in true.astype(float)]
        for x in rows.astype(float)
    ]
    np.testing.assert_allclose(cosines_with(rows, true), expected, atol=1e-6)


def test_other_widths_are_refused():
    with pytest.raises(InputError, match="have 8 entries, but those of the truth have 9"):
        cosines_with(directions(2, 8, 0), directions(2, 9, 0))


def test_the_order_of_two_features_nearest_to_one_true_feature_is_theirs():
    decoder = np.array([[0.1, -0.9, 0.0], [0.8, 0.0, 0.1], [0.2, 0.5, 0.1]], np.float32)
    assert literal_order(decoder).tolist() == [1, 0, 2]
    assert uniqueness(decoder) == 2 / 3


def test_the_assignment_is_the_best_of_all():
    rng = np.random.default_rng(4)
    for n, m in ((5, 5), (4, 6), (6, 4)):
        decoder = rng.uniform(-1, 1, (n, m)).astype(np.float32)
        result = assigned(decoder)
        total = np.abs(decoder)[result.feature, result.true_feature].sum()
        small, large = sorted((n, m))
        scores = np.abs(decoder if n <= m else decoder.T)
        best = max(scores[np.arange(small), list(order)].sum() for order in permutations(range(large), small))
        assert abs(total - best) < 1e-5
        assert len(set(result.feature.tolist())) == len(set(result.true_feature.tolist())) == small


@pytest.mark.slow  # importing sae-lens
def test_orders_and_scores_are_those_of_sae_lens():
    from tests.saes.reference import sae_lens

    sae_lens()
    import torch
    from sae_lens import synthetic

    true = directions(12, 16, 0)
    dictionary = synthetic.FeatureDictionary(12, 16, initializer=None)
    dictionary.feature_vectors.data = torch.from_numpy(true)
    rows = [noisy(true, noise, seed) for seed, noise in enumerate((0.5, 0.05, 0.3))]
    saes = [torch.nn.ParameterDict({"W_dec": torch.from_numpy(some)}) for some in rows]
    decoders = [cosines_with(some, true) for some in rows]
    for some, decoder in zip(rows, decoders, strict=True):
        nearest = torch.from_numpy(some)
        theirs = synthetic.find_best_feature_ordering(nearest, torch.from_numpy(true)).numpy()
        order = literal_order(decoder)
        best = np.abs(decoder).argmax(axis=1)
        np.testing.assert_array_equal(best[order], best[theirs])  # torch.argsort may swap equal ones
        result = assigned(decoder)
        mean = np.abs(decoder)[result.feature, result.true_feature].mean()
        assert abs(mean - synthetic.mean_correlation_coefficient(nearest, torch.from_numpy(true))) < 1e-5
        assert uniqueness(decoder) == synthetic.feature_uniqueness(nearest, torch.from_numpy(true))
    best, order = best_order(decoders)
    theirs = synthetic.find_best_feature_ordering_across_saes(saes, dictionary).numpy()
    np.testing.assert_array_equal(
        np.abs(decoders[best]).argmax(axis=1)[order], np.abs(decoders[best]).argmax(axis=1)[theirs]
    )


def test_the_best_order_has_the_highest_mean_of_rounded_cosines():
    true = directions(12, 16, 0)
    decoders = [cosines_with(np.abs(noise) * directions(12, 16, 9) + true, true) for noise in (1.0, 0.1, 0.5)]
    best, order = best_order(decoders)
    scores = [
        np.mean([round(float(d[o, place]), 2) for place, o in enumerate(literal_order(d))]) for d in decoders
    ]
    assert best == int(np.argmax(scores)) == 1
    assert order.tolist() == list(range(12))
    assert abs(literal_score(decoders[1], order) - scores[1]) < 1e-6
