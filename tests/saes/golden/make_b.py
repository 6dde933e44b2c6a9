"""Make tests/data/saes/llama_scope-*: SAEs in the published form, and what their authors' own class gives.

Needs llamascopium (2.0.0b34), the authors' package, which the tests do not: `python make_b.py`. Its class
holds the SAE as the published loader leaves it: with the data set's norms folded in
(`standardize_parameters_of_dataset_norm`). The step of that loader which is not in it, decoders of norm 1
(`transform_to_unit_decoder_norm`), multiplies each activation by its decoder's norm.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llamascopium.models.sae import SAEConfig, SparseAutoEncoder
from safetensors.torch import save_file

DATA = Path(__file__).parents[2] / "data" / "saes"
D_MODEL, D_SAE, ROWS = 16, 48, 40

HOOK = "blocks.8.hook_resid_post"
CASES: dict[str, dict[str, Any]] = {
    "res": {"hook_point_in": HOOK, "hook_point_out": HOOK, "norm": (6.3, 6.3), "threshold": 1.1},
    "transcoder": {
        "hook_point_in": "blocks.8.ln2.hook_normalized",
        "hook_point_out": "blocks.8.hook_mlp_out",
        "norm": (4.0, 0.9),
        "threshold": 0.2,
    },
}


def draw(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Tensors by the names of the files, bfloat16 as those are; decoders with norms of about 1.5."""

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(torch.bfloat16)

    norms = 1.5 * (0.3 * torch.randn(D_SAE, generator=generator)).exp()
    decoder = torch.randn(D_MODEL, D_SAE, generator=generator)
    return {
        "encoder.weight": normal(D_SAE, D_MODEL, scale=D_MODEL**-0.5),
        "encoder.bias": normal(D_SAE, scale=0.1),
        "decoder.weight": (decoder / decoder.norm(dim=0) * norms).to(torch.bfloat16),
        "decoder.bias": normal(D_MODEL, scale=0.1),
    }


def authors_sae(case: dict[str, Any], tensors: dict[str, torch.Tensor]) -> SparseAutoEncoder:
    """The authors' class with these weights, ready for x as the model gives it."""
    sae = SparseAutoEncoder(
        SAEConfig(
            sae_type="sae",
            hook_point_in=case["hook_point_in"],
            hook_point_out=case["hook_point_out"],
            d_model=D_MODEL,
            expansion_factor=D_SAE / D_MODEL,
            act_fn="jumprelu",
            norm_activation="dataset-wise",
            sparsity_include_decoder_norm=True,
            dtype=torch.float32,
            device="cpu",
        )
    )
    _fill(sae, case, tensors)
    return sae


@torch.no_grad()
def _fill(sae: SparseAutoEncoder, case: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    sae.W_E.copy_(tensors["encoder.weight"].T)
    sae.b_E.copy_(tensors["encoder.bias"])
    sae.W_D.copy_(tensors["decoder.weight"].T)
    sae.b_D.copy_(tensors["decoder.bias"])
    sae.activation_function.log_jumprelu_threshold.fill_(np.log(case["threshold"]))
    sae.set_dataset_average_activation_norm(
        {case["hook_point_out"]: case["norm"][1]} | {case["hook_point_in"]: case["norm"][0]}
    )
    sae.standardize_parameters_of_dataset_norm()


def hyperparams(case: dict[str, Any]) -> dict[str, Any]:
    """hyperparams.json as the published ones are."""
    return {
        "d_model": D_MODEL, "d_sae": D_SAE, "act_fn": "jumprelu", "top_k": 50,
        "jump_relu_threshold": case["threshold"], "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False, "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": case["norm"][0], "out": case["norm"][1]},
        "sparsity_include_decoder_norm": True, "use_glu_encoder": False,
        "hook_point_in": case["hook_point_in"], "hook_point_out": case["hook_point_out"],
    }  # fmt: skip


def main() -> None:
    """Write every case."""
    for n, (name, case) in enumerate(CASES.items()):
        generator = torch.Generator().manual_seed(n)
        tensors = draw(generator)
        x = torch.randn(ROWS, D_MODEL, generator=generator) * case["norm"][0] / D_MODEL**0.5
        with torch.no_grad():
            sae = authors_sae(case, tensors)
            features = sae.encode(x)
            reconstruction = sae.decode(features)
        folder = DATA / f"llama_scope-{name}"
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "hyperparams.json").write_text(json.dumps(hyperparams(case), indent=1))
        save_file(tensors, folder / "checkpoints" / "final.safetensors")
        np.savez_compressed(
            folder / "expected.npz",
            x=x.numpy(),
            activations=(features * sae.decoder_norm()).detach().numpy(),
            reconstruction=reconstruction.numpy(),
        )


if __name__ == "__main__":
    main()
