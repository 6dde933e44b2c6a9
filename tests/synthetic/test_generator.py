"""What is drawn: its form, its frequencies, its bursts, and that it depends on places alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.synthetic import generator as room
from pipeline.synthetic.generator import SCALE
from pipeline.synthetic.hashing import LEVELS, skewed
from pipeline.synthetic.planted import EVERY, planted_rows
from tests.fixtures.store import to_csr
from tests.fixtures.synthetic import drawn, generator
from tests.fixtures.tokens import rows_of, shard_of

DOCUMENTS = np.random.default_rng(0).geometric(1 / 60, 600)
SHARD = shard_of(DOCUMENTS)


def expected_frequency(made: room.Generator) -> np.ndarray:
    """Probability that a feature is active in a stored row, over all rows and seeds, float64 [F]."""
    frequency = made._cells * (made._levels.mean() / made.slots / (1 << made._bits))
    frequency[made._starts[-2] :] *= 1 - 1 / EVERY
    frequency[made.planted] += 1 / EVERY / len(made.planted)
    return frequency


@settings(max_examples=60, deadline=None)
@given(
    st.integers(4, 3000),
    st.floats(0.25, 60),
    st.floats(0, 4),
    st.floats(0, 1),
    st.integers(0, 2**63 - 1),
    st.lists(st.integers(1, 40), min_size=1, max_size=40),
    st.integers(0, 2**40),
)
def test_rows_ascend_without_duplicates_and_rows_that_are_not_stored_are_empty(
    d_sae, l0, exponent, burst, seed, lengths, row_start
):
    l0 = min(l0, d_sae / 8)
    made = generator(f"d_sae={d_sae},l0={max(l0, 0.25)}", exponent=exponent, burst=burst, seed=seed)
    stored = np.random.default_rng(0).random(sum(lengths)) < 0.7
    result = drawn(made, shard_of(lengths, counted=stored, row_start=row_start))
    assert (result.indices.dtype, result.data.dtype, result.indptr.dtype) == (np.int32, np.float32, np.int64)
    assert len(result.indptr) == len(stored) + 1
    assert not np.diff(result.indptr)[~stored].any()
    if result.nnz:
        assert result.indices.min() >= 0
        assert result.indices.max() < d_sae
    rows = np.repeat(np.arange(len(stored)), np.diff(result.indptr))
    assert (np.diff(rows.astype(np.int64) * d_sae + result.indices) > 0).all()
    k = result.data * SCALE
    assert (k >= 1).all()
    assert (k == np.rint(k)).all()
    assert (result.data.astype(np.float16) == result.data).all()


@pytest.mark.parametrize("cuts", [(0, 1, 2, 3, 700, 9000), (0, 5000), tuple(range(0, 9000, 777))])
def test_it_does_not_matter_where_rows_are_cut(cuts, monkeypatch):
    made, shard = generator(), rows_of(SHARD, 0, 9000)
    whole = to_csr(drawn(made, shard), 512)
    monkeypatch.setattr(room, "_BLOCK", 3000)
    pieces = [
        to_csr(drawn(generator(), rows_of(shard, low, high)), 512)
        for low, high in zip(cuts, [*cuts[1:], 9000], strict=True)
    ]
    low = 0
    for piece in pieces:
        assert (whole[low : low + piece.shape[0]] != piece).nnz == 0
        low += piece.shape[0]
    assert low == 9000 - cuts[0]


def test_another_seed_draws_other_features():
    first, second = (to_csr(drawn(generator(seed=seed), SHARD), 512) for seed in (0, 1))
    common = (first != 0).multiply(second != 0).nnz
    assert common < 0.1 * first.nnz


@pytest.mark.parametrize("exponent", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("burst", [0.0, 0.5, 1.0])
def test_measured_frequencies_are_those_expected_within_5_standard_errors(exponent, burst):
    made = generator(exponent=exponent, burst=burst, seed=3)
    active = to_csr(drawn(made, SHARD), 512) != 0
    n, expected = SHARD.n_rows, expected_frequency(made)
    mean_square = (DOCUMENTS.astype(float) ** 2).sum() - n
    # The variance of a count: binomial, and pairs of rows of one document that both take its favourite.
    taken = 12 / made.slots
    variance = n * expected + mean_square * burst**2 * taken * expected
    error = (active.sum(axis=0).A1 - n * expected) / np.sqrt(variance)
    assert np.abs(error).max() < 5
    assert 0.7 < np.sqrt((error**2).mean()) < 1.3
    assert abs(active.sum() / n - 12 - 1 / EVERY) < 0.3
    assert abs(expected.sum() - 12) < 0.01


def test_frequencies_are_skewed_and_do_not_follow_the_features_numbers():
    expected = expected_frequency(generator("d_sae=4096,l0=16"))
    ordered = np.sort(expected)[::-1]
    assert 0.1 < ordered[0] < 0.25
    assert ordered[0] > 300 * ordered[-1] > 0
    assert abs(np.corrcoef(np.arange(4096), np.argsort(np.argsort(expected)))[0, 1]) < 0.1
    flat = expected_frequency(generator("d_sae=4096,l0=16", exponent=0))[:-64]
    assert flat.max() < 1.2 * flat.min()


def test_documents_have_favourites_so_that_counts_vary_far_more_than_binomial_ones():
    ratio = {}
    for burst in (0.0, 0.5):
        made = generator("d_sae=512,l0=12", burst=burst)
        active = (to_csr(drawn(made, shard_of([100] * 300)), 512) != 0).astype(np.int64)
        counts = np.add.reduceat(active.toarray(), np.arange(0, 30000, 100), axis=0)
        mean = counts.mean(axis=0)
        some = (mean > 0.5) & (mean < 10)
        ratio[burst] = np.median(counts.var(axis=0)[some] / (mean * (1 - mean / 100))[some])
    assert 0.8 < ratio[0.0] < 1.2
    assert ratio[0.5] > 3


def test_l0_varies_by_row_about_its_mean():
    lengths = np.diff(drawn(generator("d_sae=2048,l0=20"), SHARD).indptr)
    assert abs(lengths.mean() - 20) < 5 * lengths.std() / len(lengths) ** 0.5
    assert lengths.std() > 8
    assert (lengths.min(), lengths.max()) == (5, pytest.approx(79, abs=2))


def test_values_are_skewed_and_features_have_scales_of_their_own():
    result = drawn(generator(), SHARD)
    mean = [result.data[result.indices % 8 == group].mean() for group in range(7)]
    assert mean == pytest.approx([0.25 * (1 + group) for group in range(7)], rel=0.1)
    assert np.median(result.data) < 0.8 * result.data.mean()


def test_planted_features_have_their_maxima_at_planted_rows():
    made = generator()
    result = to_csr(drawn(made, SHARD), 512)
    assert made.planted.tolist() == list(range(504, 512))
    for feature in made.planted.tolist():
        rows, values = planted_rows(SHARD.n_rows, feature, made.planted)
        column = result[:, feature].toarray().ravel()
        assert len(rows) > 5
        assert (values[0], values.min() >= 32) == (column.max(), True)
        np.testing.assert_array_equal(np.flatnonzero(column >= 32), np.sort(rows))
        np.testing.assert_array_equal(column[rows], values)
        assert len(set(values.tolist())) == len(values)
    assert result[:, :504].max() < 9


@pytest.mark.parametrize(("mean", "least"), [(62.5, 15.6), (511, 0), (0.25, 0.06), (0, 0), (15, 0)])
def test_skewed_numbers_have_their_mean_and_bounds(mean, least):
    result = skewed(mean, least)
    assert len(result) == LEVELS
    assert abs(result.mean() - mean) <= 0.5 / LEVELS
    assert result.min() >= int(least)
    assert result.max() <= np.ceil(4 * mean)
