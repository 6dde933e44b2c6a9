"""Nearest directions are those of the whole matrix of cosines, whatever the blocks."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from jobs.tables.pairs import directions as module
from jobs.tables.pairs.directions import directions_of, nearest, pair_cosines
from pipeline.store import FeatureStore
from pipeline.store.records.site import write_site_weights
from schemas.errors import InputError
from tests.fixtures.store import D_SAE, build, planned_site

ZERO, INFINITE, TWINS = 4, 9, (11, 12, 30)


def decoder(seed):
    """Random rows, one of 0, one that is not finite, three alike but for their length."""
    rows = np.random.default_rng(seed).normal(size=(D_SAE, 6)).astype(np.float32)
    rows[ZERO], rows[INFINITE, 2] = 0, np.inf
    rows[TWINS[1]], rows[TWINS[2]] = 2 * rows[TWINS[0]], 4 * rows[TWINS[0]]
    return rows


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    built = build(tmp_path_factory.mktemp("store"), shards=1, sites=("a", "b", "none", "plain"))
    for seed, name in enumerate("ab"):
        write_site_weights(built.layout, "p", planned_site(name), {"W_dec": decoder(seed)}, {})
    write_site_weights(built.layout, "p", planned_site("none"), {}, {})
    return FeatureStore.open(built.layout.root)


def brute_cosines(a, b):
    rows = [decoder(seed).astype(np.float64) for seed in (a, b)]
    with np.errstate(invalid="ignore", divide="ignore"):
        units = [r / np.linalg.norm(r, axis=1, keepdims=True) for r in rows]
        cosine = units[0] @ units[1].T
    cosine[[ZERO, INFINITE]] = cosine[:, [ZERO, INFINITE]] = np.nan
    return cosine


@pytest.mark.parametrize("block", [7, 16, 4096])
@pytest.mark.parametrize("k", [1, 5, 100])
@pytest.mark.parametrize("pair", ["aa", "ab"])
def test_the_nearest_are_those_of_all_cosines(store, monkeypatch, block, k, pair):
    monkeypatch.setattr(module, "BLOCK", block)
    own, other = (directions_of(store, name) for name in pair)
    cosine = brute_cosines(*("ab".index(name) for name in pair))
    if pair == "aa":
        np.fill_diagonal(cosine, np.nan)
    for features in own.blocks():
        result = nearest(own, other, k, features)
        assert (np.diff(result.feature) >= 0).all()
        for feature in features:
            here = result.feature == feature
            values = np.sort(cosine[feature][~np.isnan(cosine[feature])])[::-1][:k]
            assert result.rank[here].tolist() == list(range(len(values)))
            assert np.allclose(result.cosine[here], values, atol=1e-6)
            assert np.allclose(cosine[feature, result.other[here]], values, atol=1e-6)
            assert (np.diff(result.cosine[here]) <= 0).all()


def test_equal_cosines_go_by_number(store):
    own = directions_of(store, "a")
    result = nearest(own, own, 2, range(D_SAE))
    for twin in TWINS:
        others = result.other[result.feature == twin].tolist()
        assert others == [other for other in TWINS if other != twin]
        assert result.cosine[result.feature == twin] == pytest.approx([1, 1], abs=1e-6)
    assert not np.isin([ZERO, INFINITE], np.append(result.feature, result.other)).any()


def test_cosines_of_given_pairs(store, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 9)
    feature, other = np.repeat(np.arange(3, 30), 4), np.tile([0, ZERO, 20, 39], 27)
    result = pair_cosines(directions_of(store, "a"), directions_of(store, "b"), feature, other)
    expected = brute_cosines(0, 1)[feature, other]
    assert np.allclose(result, expected, atol=1e-7, equal_nan=True)
    empty = np.empty(0, np.int64)
    assert len(pair_cosines(directions_of(store, "a"), directions_of(store, "b"), empty, empty)) == 0


def test_tasks_get_paths_and_no_weights(store):
    own = directions_of(store, "a")
    assert own.width == 6
    again = pickle.loads(pickle.dumps(own))
    assert again == own
    assert "_rows" not in vars(again)
    assert again.width == 6


def test_a_site_without_a_decoder_and_one_without_weights(store):
    assert directions_of(store, "none").width is None
    with pytest.raises(InputError, match="run `latentlake run` again"):
        _ = directions_of(store, "plain").width
