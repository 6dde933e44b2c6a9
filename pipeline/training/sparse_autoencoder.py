"""An SAE with a pre-bias and a target of sparsity, saved as SAELens saves its own.

acts = relu((x - b_dec) @ W_enc + b_enc), reconstruction = acts @ W_dec + b_dec; the loss is the mean squared
error + weight * KL(rho || mean activation), summed over features, the mean being over the batch and clamped
to 1e-7 .. 1 - 1e-7. The penalty is that of A. Ng, "Sparse autoencoder" (CS294A, 2011), section 3, of sigmoid
units there: of ReLU's it wants a small mean, not zeros.

n rows, D d_model, F d_sae.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.training.batches import Steps, trained

PENALTY = 1e-4
"""Weight of the penalty in the loss."""
CLAMP = 1e-7


@dataclass(frozen=True)
class Sparsity:
    """The target: `rho` is the mean activation that each feature should have, `weight` how strongly."""

    rho: float
    weight: float = PENALTY


class SparseAutoencoder(nn.Module):
    """Weights by SAELens' names: W_enc [D, F], W_dec [F, D], b_enc [F], b_dec [D]."""

    def __init__(self, d_model: int, d_sae: int) -> None:
        super().__init__()
        self.W_enc = nn.Parameter(torch.empty(d_model, d_sae))
        self.W_dec = nn.Parameter(torch.empty(d_sae, d_model))
        self.b_enc, self.b_dec = nn.Parameter(torch.zeros(d_sae)), nn.Parameter(torch.zeros(d_model))
        for weight in (self.W_enc, self.W_dec):  # stored as [in, out], torch's initialiser reads [out, in]
            nn.init.kaiming_uniform_(weight.data.T)

    def encode(self, x: Tensor) -> Tensor:
        """Activations [n, F] of x [n, D]."""
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)

    def decode(self, activations: Tensor) -> Tensor:
        """The reconstruction [n, D]."""
        return activations @ self.W_dec + self.b_dec


def penalty(activations: Tensor, rho: float) -> Tensor:
    """KL(rho || mean activation) of each feature over the rows [n, F], summed over the features."""
    # a mean of 0 or above 1, which ReLU gives, has no logarithm: clamped it has no gradient either
    mean = activations.mean(dim=0).clamp(CLAMP, 1 - CLAMP)
    return (rho * torch.log(rho / mean) + (1 - rho) * torch.log((1 - rho) / (1 - mean))).sum()


def train_sae(
    x: Tensor, d_sae: int, sparsity: Sparsity, steps: Steps, advance: Callable[[int], None]
) -> SparseAutoencoder:
    """Train on rows x float32 [n, D] with Adam."""
    torch.manual_seed(steps.seed)
    sae = SparseAutoencoder(x.shape[1], d_sae)

    def loss_of(rows: Tensor) -> Tensor:
        activations = sae.encode(x[rows])
        error = nn.functional.mse_loss(sae.decode(activations), x[rows])
        return error + sparsity.weight * penalty(activations, sparsity.rho)

    return trained(sae, len(x), steps, advance, loss_of)


def save_sae(folder: Path, sae: SparseAutoencoder, hook_name: str, sparsity: Sparsity) -> Path:
    """Write cfg.json and sae_weights.safetensors; the target of sparsity goes into the metadata."""
    d_model, d_sae = sae.W_enc.shape
    config = {
        "architecture": "standard",
        "d_in": d_model,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "hook_name": hook_name,
            "prepend_bos": False,
            "sparsity_rho": sparsity.rho,
            "sparsity_weight": sparsity.weight,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().contiguous() for name, tensor in sae.state_dict().items()}
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return folder
