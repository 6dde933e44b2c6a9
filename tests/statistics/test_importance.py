"""Importance in closed form equals the loop that ablates each feature and computes the loss again."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import sparse

from pipeline.statistics.evaluation import importance as module
from pipeline.statistics.evaluation.importance import ClassSums, Penalty, class_sums, squared_norms
from pipeline.statistics.evaluation.importance import importance as importance_of

N, F, D, CLASSES = 90, 23, 7, 4


class Held:
    """x of a shard, read in pieces."""

    def __init__(self, x):
        self.x, self.longest = x, 0

    def read(self, start=0, stop=None):
        result = self.x[start:stop]
        self.longest = max(self.longest, len(result))
        return result


def importance(sums, w_dec, penalty):
    return importance_of(sums, squared_norms(w_dec), w_dec.shape[1], penalty)


@pytest.fixture
def drawn():
    """Sparse activations, some features never active, one nearly always and above 1; x, classes, decoder."""
    random = np.random.default_rng(3)
    active = random.random((N, F)) < np.linspace(0, 0.9, F)
    activations = np.where(active, random.exponential(0.8, (N, F)), 0).astype(np.float32)
    x = random.standard_normal((N, D)).astype(np.float32)
    of_row = random.integers(-1, CLASSES, N)
    w_dec, b_dec = random.standard_normal((F, D)), random.standard_normal(D)
    return activations, x, of_row, w_dec.astype(np.float32), b_dec.astype(np.float32)


def loss(activations, x, w_dec, b_dec, penalty):
    """The loss that the SAE is trained by, of a batch [n, F] or, as the notebook calls it, of one sample [F]:
    the mean over axis 0 is then over features.
    """
    activations = activations.astype(np.float64)
    error = ((x - (activations @ w_dec.astype(np.float64) + b_dec)) ** 2).mean()
    mean = activations.mean(axis=0).clip(1e-7, 1 - 1e-7)
    rho = penalty.rho
    return (
        error + penalty.weight * (rho * np.log(rho / mean) + (1 - rho) * np.log((1 - rho) / (1 - mean))).sum()
    )


def by_the_loop(activations, x, w_dec, b_dec, penalty):
    """Changes of the loss, corrected and literal, feature after feature, sample after sample."""
    whole = loss(activations, x, w_dec, b_dec, penalty)
    samples = zip(activations, x, strict=True)
    literal = np.mean([loss(sample, row, w_dec, b_dec, penalty) for sample, row in samples])
    ablated = []
    for feature in range(F):
        without = activations.copy()
        without[:, feature] = 0
        ablated.append(loss(without, x, w_dec, b_dec, penalty))
    return np.array(ablated) - whole, np.array(ablated) - literal, whole, literal


@pytest.mark.parametrize("penalty", [Penalty(0.1, 1e-4), Penalty(0.999, 0.3), Penalty()])
def test_it_is_what_the_loop_over_features_and_samples_finds(drawn, penalty):
    activations, x, of_row, w_dec, b_dec = drawn
    sums = class_sums(sparse.csr_matrix(activations), Held(x), of_row, CLASSES, w_dec, b_dec, penalty)
    result = importance(sums, w_dec, penalty)
    for number in range(CLASSES):
        rows = of_row == number
        change, literal, whole, literal_whole = by_the_loop(activations[rows], x[rows], w_dec, b_dec, penalty)
        np.testing.assert_allclose(result.change[number], change, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(result.literal_change[number], literal, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose([result.loss[number], result.literal_loss[number]], [whole, literal_whole])
        np.testing.assert_allclose(result.importance[number], change / change.sum(), rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(
            result.literal_importance[number], literal / literal.sum(), rtol=1e-8, atol=1e-11
        )
        assert sums.n_active[number].tolist() == (activations[rows] > 0).sum(axis=0).tolist()


def test_the_literal_loss_shifts_all_features_alike(drawn):
    activations, x, of_row, w_dec, b_dec = drawn
    penalty = Penalty(0.1, 0.5)
    sums = class_sums(sparse.csr_matrix(activations), Held(x), of_row, CLASSES, w_dec, b_dec, penalty)
    result = importance(sums, w_dec, penalty)
    shift = result.literal_change - result.change
    assert np.ptp(shift, axis=1).max() < 1e-12
    assert np.abs(shift).min() > 1e-3


def test_over_all_classes_the_literal_loss_is_that_of_the_batch(drawn):
    activations, x, _, w_dec, b_dec = drawn
    penalty, every = Penalty(0.1, 0.5), np.zeros(N, np.int64)
    sums = class_sums(sparse.csr_matrix(activations), Held(x), every, 1, w_dec, b_dec, penalty)
    result = importance(sums, w_dec, penalty).of_the_batch()
    change, _, whole, _ = by_the_loop(activations, x, w_dec, b_dec, penalty)
    np.testing.assert_allclose(result.literal_importance[0], change / change.sum(), rtol=1e-8, atol=1e-11)
    assert result.literal_loss[0] == pytest.approx(whole)


def test_all_rows_are_the_classes_together(drawn):
    activations, x, of_row, w_dec, b_dec = drawn
    penalty = Penalty(0.1, 1e-4)
    matrix = sparse.csr_matrix(activations)
    sums = class_sums(matrix, Held(x), of_row, CLASSES, w_dec, b_dec, penalty)
    whole = class_sums(matrix, Held(x), np.where(of_row < 0, -1, 0), 1, w_dec, b_dec, penalty)
    for mine, theirs in zip(sums.together(range(CLASSES)).parts, whole.parts, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-9)


def test_sums_of_shards_add_up_and_blocks_do_not_matter(drawn, monkeypatch):
    activations, x, of_row, w_dec, b_dec = drawn
    penalty, matrix = Penalty(0.1, 1e-4), sparse.csr_matrix(activations)
    whole = class_sums(matrix, Held(x), of_row, CLASSES, w_dec, b_dec, penalty)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 8 * D * F * 5)
    parts = ClassSums.zero(CLASSES, F)
    for rows in (slice(0, 31), slice(31, 32), slice(32, 32), slice(32, N)):
        parts += class_sums(matrix[rows], Held(x[rows]), of_row[rows], CLASSES, w_dec, b_dec, penalty)
    for mine, theirs in zip(parts.parts, whole.parts, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-9)


def test_x_is_read_in_pieces_and_each_sum_is_that_of_the_rows_of_its_class(drawn, monkeypatch):
    activations, x, of_row, w_dec, b_dec = drawn
    monkeypatch.setattr(module, "_BLOCK_BYTES", 8 * D * 16)
    held, penalty = Held(x), Penalty(0.1, 1e-4)
    sums = class_sums(sparse.csr_matrix(activations), held, of_row, CLASSES, w_dec, b_dec, penalty)
    assert held.longest == 32
    exact, decoder = activations.astype(np.float64), w_dec.astype(np.float64)
    rest = x - (exact @ decoder + b_dec)
    for number in range(CLASSES):
        mine = of_row == number
        expected = (exact[mine].sum(axis=0), (exact[mine] ** 2).sum(axis=0))
        along = (exact[mine] * (rest[mine] @ decoder.T)).sum(axis=0)
        np.testing.assert_allclose(sums.total[number], expected[0], rtol=1e-14)
        np.testing.assert_allclose(sums.squares[number], expected[1], rtol=1e-14)
        np.testing.assert_allclose(sums.along[number], along, rtol=1e-12, atol=1e-13)
        assert sums.error[number] == pytest.approx((rest[mine] ** 2).sum(), rel=1e-14)
        assert sums.rows[number] == mine.sum()


def test_memory_is_that_of_the_sums_and_not_several_times_that(drawn, monkeypatch):
    """Of many classes: one table each of counts and three sums; blocks touch the pairs that occur alone."""
    activations, x, of_row, w_dec, b_dec = drawn
    monkeypatch.setattr(module, "_BLOCK_BYTES", 8 * D * 16)
    many, matrix = 20_000, sparse.csr_matrix(activations)
    tracemalloc.start()
    sums = class_sums(matrix, Held(x), of_row * 5_000, many, w_dec, b_dec, Penalty())
    sums += sums
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sums.rows.sum() == 2 * (of_row >= 0).sum()
    assert 32 * many * F <= peak < 1.1 * 32 * many * F


def test_without_x_the_reconstruction_stands_for_it(drawn):
    activations, _, of_row, w_dec, b_dec = drawn
    penalty, matrix = Penalty(), sparse.csr_matrix(activations)
    own = (activations.astype(np.float64) @ w_dec.astype(np.float64) + b_dec).astype(np.float64)
    message = importance(
        class_sums(matrix, Held(own), of_row, CLASSES, w_dec, b_dec, penalty), w_dec, penalty
    )
    result = importance(class_sums(matrix, None, of_row, CLASSES, w_dec, b_dec, penalty), w_dec, penalty)
    np.testing.assert_allclose(result.change, message.change, rtol=1e-9, atol=1e-12)
    assert (result.error == 0).all()


def test_a_class_without_rows_has_no_importance(drawn):
    activations, x, of_row, w_dec, b_dec = drawn
    sums = class_sums(
        sparse.csr_matrix(activations), Held(x), of_row * 0 + 1, 3, w_dec, b_dec, Penalty(0.1, 1e-4)
    )
    result = importance(sums, w_dec, Penalty(0.1, 1e-4))
    assert np.isnan(result.importance[[0, 2]]).all()
    assert result.importance[1].sum() == pytest.approx(1)
