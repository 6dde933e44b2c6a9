"""Figures of a reconstruction against NumPy's on all rows at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.saes import load_sae
from pipeline.saes.quality.reconstruction import Reconstruction, reconstruct, target_of, worse_than_mean
from schemas.errors import InputError
from schemas.values import SparseFeatures
from tests.kit import write_sae

BATCHES = (1, 7, 500, 0, 3, 1489)


def rows(mean=0.0, sigma=1.0, n=2000, width=5, seed=0):
    rng = np.random.default_rng(seed)
    target = (mean + sigma * rng.standard_normal((n, width))).astype(np.float32)
    return target, (target + 0.3 * sigma * rng.standard_normal((n, width))).astype(np.float32)


def sparse(dense):
    indptr = np.concatenate([[0], np.cumsum((dense != 0).sum(axis=1))])
    return SparseFeatures(indptr, np.nonzero(dense)[1].astype(np.int32), dense[dense != 0])


def activations(n=2000, d_sae=12, seed=1):
    rng = np.random.default_rng(seed)
    dense = rng.random((n, d_sae)).astype(np.float32)
    dense[dense < rng.random((n, 1))] = 0
    dense[:, [3, 8]] = 0
    return dense


def added(target, given, dense, sizes=BATCHES):
    result, start = Reconstruction(dense.shape[1]), 0
    for size in sizes:
        part = slice(start, start + size)
        result.add(torch.from_numpy(target[part]), torch.from_numpy(given[part]), sparse(dense[part]))
        start += size
    assert start == len(target)
    return result


@pytest.mark.parametrize(("mean", "sigma"), [(0.0, 1.0), (1e4, 1e-2), (-3.0, 50.0)])
def test_uneven_batches_give_the_global_figures(mean, sigma):
    target, given = rows(mean, sigma)
    result = added(target, given, activations())
    t, g = target.astype(np.float64), given.astype(np.float64)
    assert result.sst == pytest.approx(((t - t.mean(axis=0)) ** 2).sum(), rel=1e-9)
    assert result.sse == pytest.approx(((t - g) ** 2).sum(), rel=1e-12)
    assert result.explained_variance == pytest.approx(1 - result.sse / t.var(axis=0).sum() / len(t), rel=1e-8)
    assert result.mse == pytest.approx(((t - g) ** 2).mean(), rel=1e-12)
    cosines = (t * g).sum(axis=1) / np.linalg.norm(t, axis=1) / np.linalg.norm(g, axis=1)
    assert result.cosine == pytest.approx(cosines.mean(), rel=1e-9)


def test_the_mean_of_the_batches_explained_variances_is_another_number():
    target, given = rows()
    target[:8] += 100
    given[:8] += 100
    whole = added(target, given, activations())
    sizes = [size for size in BATCHES if size > 1]
    parts, start = [], 1
    for size in sizes:
        part = slice(start, start + size)
        parts.append(added(target[part], given[part], activations()[part], [size]).explained_variance)
        start += size
    assert abs(np.mean(parts) - whole.explained_variance) > 0.01


@pytest.mark.parametrize("n", [1999, 2000])
def test_l0_and_dead_features(n):
    target, given = rows()
    dense = activations()[:n]
    result = added(target[:n], given[:n], dense, [n - 100, 100])
    l0 = (dense != 0).sum(axis=1)
    assert result.l0_mean == pytest.approx(l0.mean(), rel=1e-15)
    assert result.l0_median == np.median(l0)
    assert result.active.tolist() == (dense != 0).sum(axis=0).tolist()
    assert result.dead == 2


def test_the_median_of_an_even_number_of_rows_lies_between_the_middle_two():
    target, given = rows(n=4)
    dense = np.triu(np.ones((4, 12), dtype=np.float32), 5)  # 7, 6, 5, 4 features
    assert added(target, given, dense, [4]).l0_median == 5.5


def test_no_row_and_a_constant_target():
    nothing = Reconstruction(4)
    assert nothing.n == 0
    assert nothing.dead == 4
    figures = (nothing.mse, nothing.cosine, nothing.l0_mean, nothing.l0_median, nothing.explained_variance)
    assert all(np.isnan(figure) for figure in figures)
    constant = added(np.ones((3, 2), np.float32), np.zeros((3, 2), np.float32), activations(3), [3])
    assert np.isnan(constant.explained_variance)
    assert worse_than_mean(constant) is None


def test_worse_than_the_mean_is_said_with_numbers():
    target, given = rows()
    assert worse_than_mean(added(target, given, activations())) is None
    sentence = worse_than_mean(added(target, -target, activations()))
    assert sentence is not None
    assert "explained variance -3" in sentence
    assert "2,000 rows" in sentence


def test_an_sae_is_measured_against_its_own_decoder(tmp_path):
    encoder = load_sae(str(write_sae(tmp_path, "jumprelu")))
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    result = Reconstruction(encoder.d_sae)
    features = reconstruct(encoder, x, target_of(encoder.metadata, x), result)
    w, dense = encoder.weights(), np.zeros((50, 64))
    dense[np.repeat(np.arange(50), np.diff(features.indptr)), features.indices] = features.data
    error = dense @ w["W_dec"] + w["b_dec"] - x.numpy()
    assert result.sse == pytest.approx((error**2).sum(), rel=1e-5)
    assert result.l0_mean == features.nnz / 50


def test_the_target_of_one_heads_sae_is_that_head(tmp_path):
    metadata = load_sae(str(write_sae(tmp_path, hook_head_index=1))).metadata
    x = torch.arange(96.0).view(2, 48)
    assert target_of(metadata, x).tolist() == x[:, 16:32].tolist()
    assert target_of(metadata, x[:, :16]).tolist() == x[:, :16].tolist()
    assert target_of(metadata, x[:0]).shape == (0, 16)


@pytest.mark.parametrize("width", [8, 17, 48])
def test_a_target_of_another_width_is_refused_with_both(tmp_path, width):
    about = replace(load_sae(str(write_sae(tmp_path))).metadata, hook_name_out="layers.2")
    with pytest.raises(
        InputError, match=rf"^layers\.2 has vectors of width {width}, but the SAE reconstructs 16"
    ):
        target_of(about, torch.zeros(3, width))
    with pytest.raises(InputError, match="has vectors of width 32"):
        target_of(replace(about, hook_head_index=2), torch.zeros(3, 32))


def with_massive_rows(share=0.0056, factor=300.0):
    """Rows well reconstructed, but for a few that are `factor` times as long, of which nothing comes back."""
    target, given = rows()
    massive = np.random.default_rng(5).random(len(target)) < share
    target[massive] *= factor
    given[massive] = 0
    return target, given, massive


@pytest.mark.parametrize("sizes", [BATCHES, (2000,), (1,) * 2000, (255, 1, 1, 1743), (256, 1744)])
def test_massive_rows_are_distinguished_whatever_the_batches(sizes):
    target, given, _ = with_massive_rows()
    result = added(target, given, activations(), sizes)
    norms = np.linalg.norm(target.astype(np.float64), axis=1)
    rest = norms <= 10 * np.median(norms[:256])
    assert np.array_equal(rest, norms <= 10 * np.median(norms))
    assert result.massive == (~rest).sum() > 3
    t, g = target[rest].astype(np.float64), given[rest].astype(np.float64)
    expected = 1 - ((t - g) ** 2).sum() / ((t - t.mean(axis=0)) ** 2).sum()
    assert result.rest.explained_variance == pytest.approx(expected, rel=1e-9)
    assert result.judged == result.rest.explained_variance > 0.9
    assert result.explained_variance < 0.01
    assert worse_than_mean(result) is None


def test_where_many_rows_are_massive_all_are_judged():
    from jobs.evaluation.check_report import massive_rows

    target, given, _ = with_massive_rows(share=0.2)
    result = added(target, given, activations())
    sentence = massive_rows(result)
    assert (
        f"without them {result.rest.explained_variance:.3f}; there are too many of them to leave out"
        in sentence
    )
    assert result.massive > 0.1 * len(target)
    assert result.judged == result.explained_variance


def test_a_reconstruction_that_is_bad_but_for_massive_rows_is_bad():
    target, _, massive = with_massive_rows()
    result = added(target, np.where(massive[:, None], target, -target), activations())
    assert result.explained_variance > 0.9
    assert "explained variance -3" in worse_than_mean(result)


@pytest.mark.parametrize("n", [0, 1, 100])
def test_of_fewer_rows_than_the_median_takes_they_are_all_it_has(n):
    target, given = rows(n=n)
    result = added(target, given, activations(n), (n,))
    assert (result.massive, result.rest.n, result.n) == (0, n, n)
    assert result.explained.of_rest is None
