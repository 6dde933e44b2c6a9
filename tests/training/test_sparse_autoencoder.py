"""The SAE's loss is the formula, training comes near its target, and its files are an ordinary SAE's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from pipeline.saes import load_sae
from pipeline.training.batches import Steps, batches
from pipeline.training.sparse_autoencoder import (
    SparseAutoencoder,
    Sparsity,
    penalty,
    save_sae,
    train_sae,
)


def rows(n: int = 600, d_model: int = 12) -> torch.Tensor:
    """Sums of a few of 8 directions, as relu(tanh(.)) gives them: 0 to 1."""
    random = np.random.default_rng(0)
    chosen = (random.random((n, 8)) < 0.3) * random.random((n, 8))
    return torch.from_numpy(np.maximum(np.tanh(chosen @ random.standard_normal((8, d_model))), 0)).float()


def ignore(n: int) -> None:
    pass


def test_the_penalty_is_the_divergence_of_two_coins_summed_over_features() -> None:
    activations = torch.rand(50, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [0.1, 0.5, 1, 1.9, 0]
    )
    for rho in (0.1, 0.999):
        mean = activations.double().mean(dim=0).clamp(1e-7, 1 - 1e-7).tolist()
        expected = sum(entropy([rho, 1 - rho], [share, 1 - share]) for share in mean)
        assert float(penalty(activations.double(), rho)) == pytest.approx(expected, rel=1e-9)
    assert float(penalty(torch.full((9, 4), 0.1), 0.1)) == pytest.approx(0, abs=1e-6)
    assert float(penalty(torch.full((9, 1), 3.0).double(), 0.999)) == pytest.approx(
        0.999 * np.log(0.999 / (1 - 1e-7)) + 0.001 * np.log(0.001 / 1e-7), rel=1e-2
    )


def test_it_begins_with_kaiming_uniform_weights_and_zero_biases() -> None:
    torch.manual_seed(0)
    sae = SparseAutoencoder(49, 98)
    assert not sae.b_enc.any()
    assert not sae.b_dec.any()
    for weight, fan_in in ((sae.W_enc, 49), (sae.W_dec, 98)):
        bound = (6 / fan_in) ** 0.5
        assert 0.98 * bound < float(weight.detach().abs().max()) <= bound
        assert float(weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.03)


def test_training_reconstructs_and_a_stronger_penalty_comes_nearer_to_rho() -> None:
    x = rows()
    result = {
        weight: train_sae(x, 24, Sparsity(0.05, weight), Steps(60, 64), ignore) for weight in (1e-4, 3e-2)
    }
    distance, error = {}, {}
    for weight, sae in result.items():
        with torch.no_grad():
            activations = sae.encode(x)
            distance[weight] = float(penalty(activations, 0.05))
            error[weight] = float(((sae.decode(activations) - x) ** 2).mean())
    assert distance[3e-2] < 0.5 * distance[1e-4]
    assert error[1e-4] < 0.2 * float(x.var(dim=0).mean())


def test_the_same_seed_gives_the_same_bits_and_every_epoch_all_rows() -> None:
    x = rows(100)
    one, two, other = (train_sae(x, 6, Sparsity(0.1), Steps(2, 32, seed), ignore) for seed in (1, 1, 2))
    assert torch.equal(one.W_enc, two.W_enc)
    assert not torch.equal(one.W_enc, other.W_enc)
    message: list[int] = []
    steps = list(batches(10, Steps(2, 4), message.append))
    assert [len(step) for step in steps] == [4, 4, 2, 4, 4, 2]
    assert sorted(torch.cat(steps[:3]).tolist()) == list(range(10))
    assert torch.cat(steps[:3]).tolist() != torch.cat(steps[3:]).tolist()
    assert message == [1, 1]


def test_its_folder_is_read_as_any_saes(tmp_path: Path) -> None:
    x = rows(80)
    sae = train_sae(x, 20, Sparsity(0.1), Steps(3, 32), ignore)
    with torch.no_grad():
        sae.b_dec += 0.1  # so that the pre-bias is seen
        sae.b_enc += 0.02
    encoder = load_sae(str(save_sae(tmp_path / "sae", sae, "hidden", Sparsity(0.1))), "cpu", "float32")
    assert encoder.metadata.hook_name == "hidden"
    assert encoder.metadata.extra["sparsity_rho"] == 0.1
    features = encoder.encode(x)
    with torch.no_grad():
        expected = sae.encode(x)
        reconstruction = sae.decode(expected)
    dense = np.zeros(expected.shape, np.float32)
    row = np.repeat(np.arange(len(x)), np.diff(features.indptr))
    dense[row, features.indices] = features.data
    np.testing.assert_allclose(dense, expected, atol=1e-6)
    np.testing.assert_allclose(encoder.decode(features, like=x), reconstruction, atol=1e-5)
