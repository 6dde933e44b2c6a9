"""OpenAI's sparse_autoencoder: a .pt state dict with `pre_bias`, `latent_bias`, `encoder.weight`, ...

After its sparse_autoencoder/model.py: acts = activation((x - pre_bias) @ encoder.weight.T + latent_bias),
reconstruction = acts @ decoder.weight.T + pre_bias. Whether x is normalised stands nowhere in a file; as in
its `from_state_dict` it is, by layer norm, exactly when the activation is TopK (the v5 SAEs).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.saes.files.tensors import (
    TensorFile,
    open_torch,
    positive_int,
    require,
    single_torch_file,
    torch_names,
)
from pipeline.saes.metadata import SaeMetadata
from schemas.errors import InputError

if TYPE_CHECKING:
    from pipeline.saes.encoding.weights import Weights

LOOKS_FOR = "a .pt file with pre_bias, latent_bias, encoder.weight and decoder.weight"

NAMES = {
    "W_enc": "encoder.weight.T",
    "W_dec": "decoder.weight.T",
    "b_enc": "latent_bias",
    "b_dec": "pre_bias",
}

STATISTICS = {"stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"}
"""What training counted, [d_sae]."""

LOCATIONS = {
    "mlp_post_act": "mlp.hook_post",
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_mlp": "hook_resid_post",
}
"""Its names of places in a block -> TransformerLens', after its README."""

PUBLISHED = re.compile(rf".*/({'|'.join(LOCATIONS)})(?:_v\d\w*)?/autoencoders/(\d+)\.pt")
"""Where its SAEs of GPT-2 small lie in its storage; the files themselves do not say what they read."""


def matches(path: Path) -> bool:
    """Whether this reader is the one for `path`."""
    return {"pre_bias", "latent_bias"} <= torch_names(path)


def read_metadata(path: Path) -> SaeMetadata:
    """Read names, shapes and plain values of the file, and its path."""
    file = open_torch(single_torch_file(path) or path)
    top_k = _activation(file) == "TopK"
    d_model, d_sae = file.length_of("pre_bias"), file.length_of("latent_bias")
    k = positive_int(file.values.get("activation_state_dict.k"), "k", file.path) if top_k else None
    if k is not None and k > d_sae:
        raise InputError(f"{file.path} has k {k}, but {d_sae} features: restore the k it was trained with")
    place = PUBLISHED.fullmatch(file.path.absolute().as_posix())
    return SaeMetadata(
        architecture="topk" if top_k else "standard",
        d_model=d_model,
        d_sae=d_sae,
        normalize_activations="layer_norm" if top_k else "none",
        k=k,
        format="openai",
        hook_name=place and f"blocks.{int(place[2])}.{LOCATIONS[place[1]]}",
        model_name=place and "gpt2",
        notes=(
            f"The file does not say whether x is layer-normed: {'it is' if top_k else 'it is not'}, as in "
            f"OpenAI's loader for an SAE with {'TopK' if top_k else 'ReLU'}.",
        ),
    )


def weight_files(path: Path) -> list[Path]:
    """See pipeline.saes.formats."""
    return [require(single_torch_file(path) or path)]


def read_weights(path: Path, metadata: SaeMetadata) -> Weights:
    """See pipeline.saes.formats."""
    return open_torch(single_torch_file(path) or path).take(NAMES, metadata, STATISTICS)


def _activation(file: TensorFile) -> str:
    """ReLU (also where the file names none) or TopK after which a ReLU follows."""
    name = file.values.get("activation", "ReLU")
    after = file.values.get("activation_state_dict.postact_fn", "ReLU")
    if name not in ("ReLU", "TopK") or after != "ReLU":
        raise InputError(f"{file.path} has activation {name!r}, then {after!r}; known: ReLU, TopK then ReLU")
    return str(name)
