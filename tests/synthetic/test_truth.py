"""The truth counts what was drawn: compared with a dense brute-force count."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from pipeline.synthetic import generator as room
from pipeline.synthetic.truth import truth
from tests.fixtures.store import to_csr
from tests.fixtures.synthetic import drawn, generator
from tests.fixtures.tokens import rows_of, shard_of

D_SAE = 64


@pytest.mark.parametrize("block", [40, 1 << 17])
def test_it_agrees_with_a_dense_count(block, monkeypatch):
    monkeypatch.setattr(room, "_BLOCK", block)
    rng = np.random.default_rng(0)
    made, lengths = generator(f"d_sae={D_SAE},l0=3"), rng.integers(1, 90, 30)
    counted = (rng.random(lengths.sum()) < 0.8) & (np.arange(lengths.sum()) > 40)
    shard = shard_of(lengths, counted=counted)
    result, dense = truth(made, [shard]), to_csr(drawn(made, shard), D_SAE).toarray().astype(np.float64)
    k = dense * 64
    assert result.counted_rows == counted.sum()
    for name, array in (("n_active", dense != 0), ("sum_k", k), ("sum_k2", k * k)):
        np.testing.assert_array_equal(getattr(result, name), array.sum(axis=0))
    np.testing.assert_array_equal(result.max_k, k.max(axis=0))
    for name, groups in (("contexts", shard.context_of_row()), ("documents", shard.document)):
        active = [(dense[groups == group] != 0).any(axis=0) for group in np.unique(groups)]
        np.testing.assert_array_equal(getattr(result, f"active_{name}"), np.sum(active, axis=0))
        assert getattr(result, name) == len(np.unique(groups[counted]))
    np.testing.assert_array_equal(result.l0, np.bincount((dense != 0).sum(axis=1)[counted]))
    mean, variance = result.moments(active=False)
    np.testing.assert_allclose(mean, dense[counted].mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(variance, dense[counted].var(axis=0), rtol=1e-12)
    column = [Fraction(value) for value in dense[dense[:, 5] != 0, 5]]
    exact = sum(column) / len(column)
    active_mean, active_variance = result.moments(active=True)
    assert active_mean[5] == float(exact)
    assert active_variance[5] == float(sum((value - exact) ** 2 for value in column) / len(column))


def test_shards_add_up_to_the_whole():
    made, shard = generator(f"d_sae={D_SAE},l0=3"), shard_of([50] * 20)
    halves = [rows_of(shard, 0, 500), rows_of(shard, 500, 1000)]
    whole, parts = truth(made, [shard]), truth(made, halves)
    for name in ("n_active", "sum_k", "sum_k2", "max_k", "active_documents", "l0"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_a_feature_that_never_fires_has_no_moments_over_its_active_rows():
    result = truth(generator("d_sae=2048,l0=1"), [shard_of([5])])
    mean, variance = result.moments(active=True)
    dead = result.n_active == 0
    assert dead.any()
    assert np.isnan(mean[dead]).all()
    assert not result.moments(active=False)[1][dead].any()
    assert not np.isnan(variance[~dead]).any()
