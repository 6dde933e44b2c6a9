"""Counts of pairs are those of dense products, whatever is gathered at once and however it is held."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from jobs.tables.pairs import pair_counts
from jobs.tables.pairs.pair_counts import Tally, cut, gathered, mean_company, tallies
from pipeline.store import FeatureStore
from pipeline.store.reading.shard_files import read_n_active
from tests.fixtures.store import D_SAE, build


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("store"), shards=4, sites=("a", "b"))


@pytest.mark.parametrize("at_once", [1, 7, 100, 1 << 20])
def test_what_is_gathered_is_each_row_of_each_feature(monkeypatch, at_once):
    monkeypatch.setattr(pair_counts, "GATHERED", at_once)
    rng = np.random.default_rng(at_once)
    x, y = (rng.random((30, n)) < p for n, p in ((12, 0.3), (9, 0.4)))
    x[:, [0, 5, 11]] = False
    x[:, 3] = True
    y[10:20] = False
    counts = np.zeros((12, 9), int)
    for place, met in gathered(sparse.csr_matrix(x.T), sparse.csr_matrix(y)):
        counts[place] += np.bincount(met, minlength=9)
    assert (counts == x.T.astype(int) @ y.astype(int)).all()
    assert list(gathered(sparse.csr_matrix((12, 30)), sparse.csr_matrix(y))) == []


@pytest.mark.parametrize("features", [range(D_SAE), range(3), range(17, 31)])
def test_counts_across_two_sites_are_those_of_dense_matrices(built, features):
    store = FeatureStore.open(built.layout.root)
    a, b = store.shard_files("a"), store.shard_files("b")
    x, y = ((built.dense[site] != 0).astype(int) for site in ("a", "b"))
    both = x.T @ y
    for feature, tally in tallies(
        list(zip(a, b, strict=True)), read_n_active(a, range(D_SAE)), D_SAE, features
    ):
        others, counts = tally.at_least(1)
        assert others.tolist() == np.flatnonzero(both[feature]).tolist()
        assert counts.tolist() == both[feature][others].tolist()


def test_the_company_is_counted_from_the_rows(built):
    l0 = (built.dense["a"] != 0).sum(axis=1)
    shards = FeatureStore.open(built.layout.root).shard_files("a")
    assert mean_company(shards) == pytest.approx((l0**2).sum() / l0.sum())


@pytest.mark.parametrize("width", [40, 4000, 10**6])
@pytest.mark.parametrize("most", [10**4, 1 << 40])
def test_a_tally_counts_the_same_sparse_and_dense(width, most):
    rng = np.random.default_rng(width)
    tally, every = Tally(width, most), []
    for size in rng.integers(0, 300, 30):
        every.append(rng.zipf(1.5, size).clip(max=width - 1).astype(np.int32))
        tally.add(every[-1])
    expected = np.bincount(np.concatenate(every), minlength=width)
    for support in (1, 3, 10**6):
        others, counts = tally.at_least(support)
        assert others.tolist() == np.flatnonzero(expected >= support).tolist()
        assert counts.tolist() == expected[others].tolist()
        assert (others.dtype, counts.dtype) == (np.int64, np.int64)


def test_counts_beyond_31_bits_stay_whole():
    tally = Tally(1, 3 << 30)
    tally.add(np.zeros(5, np.int32))
    tally._counts += 3 << 30
    assert tally.at_least(1)[1].tolist() == [5 + (3 << 30)]


def test_blocks_hold_what_memory_lets_them_and_cover_every_feature(monkeypatch):
    monkeypatch.setattr(pair_counts, "BLOCK_BYTES", 4 * 2 * 1000 * 8)
    n_active = np.full(1000, 10**6)
    blocks = cut(n_active, 60.0, 1000)  # each holds 2 x 1000 counts of 4 bytes
    assert max(map(len, blocks)) == 8
    assert [feature for block in blocks for feature in block] == list(range(1000))
    assert len(cut(np.full(1000, 3), 10.0, 1000)) == 2  # each holds 30 indices
    assert cut(np.zeros(5, int), 0.0, 5) == [range(5)]
    monkeypatch.setattr(pair_counts, "BLOCK_BYTES", 1)
    assert len(cut(np.full(9, 10), 2.0, 9)) == 9


def test_every_block_reads_all_activations_so_their_number_does_not_make_more_blocks(monkeypatch):
    monkeypatch.setattr(pair_counts, "BLOCK_PAIRS", 1)
    monkeypatch.setattr(pair_counts, "BLOCK_BYTES", 1 << 60)
    result = [len(cut(np.full(1000, n), 60.0, 1000)) for n in (100, 10**4, 10**6)]
    assert max(result) <= 1 + 60 / pair_counts.PAIRS_FOR_READING
    assert min(result) == max(result)
