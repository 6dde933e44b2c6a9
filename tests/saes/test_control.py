"""What a control's encoder gives, for every architecture, cut in any way, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.saes import load_sae
from pipeline.saes.encoding import control as module
from pipeline.saes.encoding.control import ControlEncoder, ControlTally
from pipeline.saes.encoding.reference import ReferenceEncoder
from tests.kit import draw_sae_weights, write_sae

D, F, N = 16, 128, 40


def draw_x():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("architecture", ["standard", "topk", "abstopk", "jumprelu", "gated"])
@pytest.mark.parametrize("kind", ["random_encoder", "shuffled_rows"])
def test_every_architecture_is_a_relu_of_its_own_biases(tmp_path, architecture, kind):
    encoder = load_sae(write_sae(tmp_path, architecture, D, F))
    weights, x = draw_sae_weights(architecture, D, F, 0), draw_x()
    rng = np.random.default_rng(7)
    w_enc = {
        "random_encoder": lambda: rng.standard_normal((D, F), dtype=np.float32),
        "shuffled_rows": lambda: weights["W_enc"][rng.permutation(D)],
    }[kind]()
    bias = weights["b_mag" if architecture == "gated" else "b_enc"]
    expected = np.maximum((x.numpy() - weights["b_dec"]) @ w_enc + bias, 0)
    result = torch.cat(list(ControlEncoder(encoder, kind, 7).blocks(x))).numpy()
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    assert 0.05 < (result > 0).mean() < 0.95


def test_shuffled_rows_of_the_encoder_are_shuffled_entries_of_x(tmp_path):
    encoder = load_sae(write_sae(tmp_path, "standard", D, F))
    order, b_dec = np.random.default_rng(7).permutation(D), encoder.weights()["b_dec"]
    x = draw_x().numpy()
    turned = np.empty_like(x)
    turned[:, order] = x - b_dec
    learnt = encoder.encode(torch.from_numpy(turned + b_dec))
    result = torch.cat(list(ControlEncoder(encoder, "shuffled_rows", 7).blocks(torch.from_numpy(x)))).numpy()
    rows = np.repeat(np.arange(N), np.diff(learnt.indptr))
    assert learnt.nnz == (result > 0).sum()
    np.testing.assert_allclose(result[rows, learnt.indices], learnt.data, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale"])
def test_x_is_normalised_as_the_sae_does(tmp_path, how):
    encoder = load_sae(write_sae(tmp_path, "standard", D, F, normalize_activations=how))
    result = [
        torch.cat(list(ControlEncoder(encoder, "random_encoder", 0).blocks(c * draw_x()))) for c in (1, 9)
    ]
    torch.testing.assert_close(*result, rtol=1e-3, atol=1e-3)


def test_an_sae_of_the_package_has_a_control_too(tmp_path):
    pytest.importorskip("sae_lens")
    from tests.saes.reference import reference

    folder = write_sae(tmp_path, "standard", D, F)
    ours = load_sae(folder)
    theirs = ReferenceEncoder(reference(folder), ours.metadata, 16)
    result = [
        torch.cat(list(ControlEncoder(e, "random_encoder", 0).blocks(draw_x()))) for e in (ours, theirs)
    ]
    torch.testing.assert_close(*result, rtol=1e-5, atol=1e-5)


def sums_of(encoder, x, norms, cut):
    tally = ControlTally(ControlEncoder(encoder, "random_encoder", 0), (0.0, 0.5))
    for some in np.array_split(np.arange(N), cut):
        tally.add(x[some], norms[some])
    return tally.sums()


@pytest.mark.parametrize("cut", [1, 3])
@pytest.mark.parametrize("bytes_", [1, 4 * F * 7])
def test_sums_are_numpys_however_rows_and_features_are_cut(tmp_path, monkeypatch, cut, bytes_):
    monkeypatch.setattr(module, "DENSE_BYTES", {"cpu": bytes_})
    monkeypatch.setattr(module, "PIECE_BYTES", {"cpu": bytes_ // 3})
    encoder = load_sae(write_sae(tmp_path, "standard", D, F))
    x, norms = draw_x(), torch.linspace(0, 5, N)
    dense = torch.cat(list(ControlEncoder(encoder, "random_encoder", 0).blocks(x))).double().numpy()
    dense *= (norms.double().numpy() / np.linalg.norm(dense, axis=1))[:, None]
    result = sums_of(encoder, x, norms, cut)
    np.testing.assert_array_equal(result.n_active, (dense > 0).sum(axis=0))
    np.testing.assert_allclose(result.total, dense.sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(result.squares, (dense**2).sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(result.largest, dense.max(axis=0), rtol=1e-5)
    for l0, threshold in zip(result.l0, (0.0, 0.5), strict=True):
        np.testing.assert_array_equal(l0, np.bincount((dense > threshold).sum(axis=1), minlength=F + 1))
    assert result.l0[0, 0] == 1  # the row of norm 0


def test_a_row_in_which_nothing_of_the_control_fires_stays_zero(tmp_path):
    weights = {"b_enc": np.full(F, -1e4, np.float32)}
    encoder = load_sae(write_sae(tmp_path, "standard", D, F, weights=weights))
    result = sums_of(encoder, draw_x(), torch.ones(N), 1)
    assert (result.n_active.sum(), result.squares.sum(), result.l0[0, 0]) == (0, 0, N)
