"""Llama Scope: `hyperparams.json` and `checkpoints/final.safetensors`, SAEs and transcoders of Llama 3.1 8B.

The formula is that of the code which made and measured the published files (OpenMOSS/Language-Model-SAEs,
autumn 2024, src/lm_saes/sae.py and post_processing.py). With s_in = sqrt(D) / average norm of x, s_out the
same of the target, and n_f the norm of feature f's column of the decoder:

    a_f = (s_in x . W_enc,f + b_f) n_f / s_out, on where a_f > jump_relu_threshold
    reconstruction = sum_f a_f W_dec,f / n_f + b_dec / s_out

So activations are lengths, in the model's own units, of what a feature adds to the reconstruction. That is
where the threshold belongs: it was read off the SAE after its loader had folded the norms of the data set
(`standardize_parameters_of_dataset_activation_scaling`) and then those of the decoder
(`transform_to_unit_decoder_norm`) into its weights.

He et al. 2024, arXiv:2410.20526.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.saes.files.tensors import open_safetensors, positive_int, read_json, require
from pipeline.saes.metadata import SaeMetadata
from schemas.errors import InputError

if TYPE_CHECKING:
    from pipeline.saes.encoding.weights import Weights

CONFIG, WEIGHTS = "hyperparams.json", "final.safetensors"
LOOKS_FOR = f"a folder with {CONFIG} and checkpoints/{WEIGHTS}"

NAMES = {
    "W_enc": "encoder.weight.T",
    "b_enc": "encoder.bias",
    "W_dec": "decoder.weight.T",
    "b_dec": "decoder.bias",
}

REFUSED = {
    "use_glu_encoder": False,
    "apply_decoder_bias_to_pre_encoder": False,
    "use_decoder_bias": True,
}
"""Settings of which we know one value: no published SAE of this format has another."""

NOTE = (
    "As in the publishers' own loader, an activation is the length of what its feature adds to the "
    "reconstruction, in the model's units, and jump_relu_threshold is compared with that. SAELens leaves out "
    "the norm n of the feature's decoder column: its activation is ours times s_out / n, and its threshold, "
    "in ours, n s_in / s_out times as high; so other features fire where n differs from 1."
)


def matches(path: Path) -> bool:
    """Whether this reader is the one for `path`."""
    return (_folder(path) / CONFIG).is_file()


def read_metadata(path: Path) -> SaeMetadata:
    """Read hyperparams.json."""
    where = _folder(path) / CONFIG
    config = read_json(where)
    # what no published SAE of this format has is refused, rather than guessed at; a TopK SAE with a threshold
    # is made a JumpReLU SAE by its publishers' loader
    if config.get("act_fn") not in ("jumprelu", "topk"):
        raise InputError(
            f"{where} has act_fn {config.get('act_fn')!r}; known: jumprelu, topk with a threshold"
        )
    how = config.get("norm_activation", "dataset-wise")
    if how not in ("dataset-wise", "inference", "none"):
        raise InputError(f"{where} has norm_activation {how!r}; known: dataset-wise, inference, none")
    for name, known in REFUSED.items():
        if bool(config.get(name, known)) != known:
            raise InputError(f"{where} has {name} {config[name]!r}; only {known} is known for this format")
    d_model = positive_int(config.get("d_model"), "d_model", where)
    hook_in = config.get("hook_point_in")
    hook_out = config.get("hook_point_out") or hook_in
    transcoder = hook_in != hook_out
    published = "Llama3_1-8B" in where.absolute().as_posix()
    return SaeMetadata(
        architecture="jumprelu",
        d_model=d_model,
        d_sae=positive_int(config.get("d_sae"), "d_sae", where),
        apply_b_dec_to_input=False,
        rescale_acts_by_decoder_norm=bool(config.get("sparsity_include_decoder_norm", True)),
        transcoder=transcoder,
        d_out=d_model if transcoder else None,
        format="llama_scope",
        hook_name=hook_in,
        hook_name_out=hook_out if transcoder else None,
        prepend_bos=True if published else None,
        context_size=1024 if published else None,
        model_name="meta-llama/Llama-3.1-8B" if published else None,
        notes=(NOTE,),
        extra=config,
    )


def weight_files(path: Path) -> list[Path]:
    """See pipeline.saes.formats."""
    return [require(_weights(path))]


def settings(path: Path) -> dict[str, float]:
    """See pipeline.saes.formats: the factors of x and of its reconstruction, and the threshold."""
    where = _folder(path) / CONFIG
    config = read_json(where)
    scale_in, scale_out = 1.0, 1.0
    if config.get("norm_activation", "dataset-wise") == "dataset-wise":
        norms = config.get("dataset_average_activation_norm")
        norms = norms if isinstance(norms, Mapping) else {}
        length = math.sqrt(positive_int(config.get("d_model"), "d_model", where))
        scale_in, scale_out = (
            length / _positive(norms.get(side), f"dataset_average_activation_norm.{side}", where)
            for side in ("in", "out")
        )
    threshold = _positive(config.get("jump_relu_threshold"), "jump_relu_threshold", where)
    return {"scale_in": scale_in, "scale_out": scale_out, "threshold": threshold}


def read_weights(path: Path, metadata: SaeMetadata) -> Weights:
    """See pipeline.saes.formats. The decoder's norms are folded in by
    `pipeline.saes.encoding.weights.finished`.
    """
    import torch

    scale_in, scale_out, threshold = settings(path).values()
    weights = open_safetensors(_weights(path)).take(NAMES, metadata)
    # the formula above, divided by s_in where that leaves W_enc as it is
    weights["b_enc"] = weights["b_enc"] / scale_in
    weights["W_dec"] = weights["W_dec"] * (scale_in / scale_out)
    weights["b_dec"] = weights["b_dec"] / scale_out
    weights["threshold"] = torch.full((metadata.d_sae,), threshold)
    return weights


def _folder(path: Path) -> Path:
    if path.name != WEIGHTS:
        return path
    return path.parent.parent if path.parent.name == "checkpoints" else path.parent


def _weights(path: Path) -> Path:
    return path if path.name == WEIGHTS else path / "checkpoints" / WEIGHTS


def _positive(value: Any, name: str, where: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-30 < value < 1e30:
        raise InputError(f"{where} has {name} {str(value)[:40]}; it must be a number between 1e-30 and 1e30")
    return float(value)
