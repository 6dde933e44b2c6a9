"""An SAE that is the dictionary: W_enc = features^T + noise, W_dec = W_enc^T, noise included.

As `init_sae_to_match_feature_dict` of sae-lens 6.28, saved as sae-lens saves, so that any reader reads it.
Besides that: the features may stand in a random order; `b_dec` is the bias of the dictionary; and a threshold
may take the place of ReLU's 0, without which noise and small cosines make features fire in half of the rows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.store.formats.safetensors import save_tensors
from pipeline.synthetic.dictionary.truth import KnownTruth
from schemas.values import F32, I64

HOOK = "input"


class SaeOptions(NamedTuple):
    """How an SAE is made: standard deviation of noise, threshold as a share of a feature's mean, order."""

    noise: float = 0.0
    threshold: float = 0.5
    shuffled: bool = True
    seed: int = 0


def order_of(made: SaeOptions, features: int) -> I64:
    """The true feature of each feature of the SAE, int64 [F]."""
    rng = np.random.default_rng((made.seed, 0))
    return rng.permutation(features) if made.shuffled else np.arange(features)


def weights_of(truth: KnownTruth, made: SaeOptions) -> dict[str, F32]:
    """W_enc [D, F], W_dec [F, D], b_enc [F], b_dec [D], and threshold [F] where there is one; float32."""
    order = order_of(made, truth.recipe.features)
    # a generator of its own: the noise of a seed is the same, whether features are shuffled or not
    rng = np.random.default_rng((made.seed, 1))
    noise = made.noise * rng.standard_normal(truth.vectors.shape)
    rows = (truth.vectors[order] + noise).astype(np.float32)
    weights = {
        "W_enc": np.ascontiguousarray(rows.T),
        "W_dec": rows,
        "b_enc": np.zeros(len(rows), np.float32),
        "b_dec": truth.bias,
    }
    if made.threshold:
        weights["threshold"] = (made.threshold * truth.mean_active[order]).astype(np.float32)
    return weights


def config_of(truth: KnownTruth, made: SaeOptions) -> dict[str, Any]:
    """The cfg.json of sae-lens."""
    return {
        "architecture": "jumprelu" if made.threshold else "standard",
        "d_in": truth.recipe.width,
        "d_sae": truth.recipe.features,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {"hook_name": HOOK, "prepend_bos": False},
    }


def write_dictionary_sae(folder: Path, truth: KnownTruth, made: SaeOptions) -> None:
    """Write `cfg.json` and `sae_weights.safetensors`; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "sae_weights.safetensors", weights_of(truth, made))
    (folder / "cfg.json").write_text(json.dumps(config_of(truth, made), indent=1), encoding="utf-8")
