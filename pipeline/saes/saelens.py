"""Reader of SAELens folders: `cfg.json` and `sae_weights.safetensors`, from before version 6 too."""

from __future__ import annotations

import hashlib
import importlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.saes.metadata import NORMALIZATIONS, SaeMetadata
from schemas.errors import InputError
from schemas.records import digest_of

if TYPE_CHECKING:
    from pipeline.saes.encoder import Encoder, Rule, Weights

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"

ARCHITECTURES = {
    "standard": ("pipeline.saes.threshold:standard", ("b_enc",)),
    "jumprelu": ("pipeline.saes.threshold:jumprelu", ("b_enc", "threshold")),
    "gated": ("pipeline.saes.threshold:gated", ("b_gate", "b_mag", "r_mag")),
    "topk": ("pipeline.saes.topk:topk", ("b_enc",)),
}
"""Architecture -> (function that builds its rule, its arrays of length d_sae)."""

OLD_KEYS = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
"""Renamed before version 6."""


def matches(folder: Path) -> bool:
    """Whether this reader is the one for `folder`."""
    return (folder / CONFIG).is_file()


def read_metadata(folder: Path) -> SaeMetadata:
    """Read cfg.json."""
    config = _config(folder)
    about: dict[str, Any] = config["metadata"]
    known = {"hook_name", "prepend_bos", "context_size", "model_name", "model_from_pretrained_kwargs"}
    return SaeMetadata(
        architecture=config["architecture"],
        d_model=int(config["d_in"]),
        d_sae=int(config["d_sae"]),
        apply_b_dec_to_input=bool(config.get("apply_b_dec_to_input", True)),
        normalize_activations=config.get("normalize_activations") or "none",
        k=_whole_number(config["k"], folder) if config["architecture"] == "topk" else None,
        rescale_acts_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        hook_name=about.get("hook_name"),
        prepend_bos=about.get("prepend_bos"),
        context_size=about.get("context_size"),
        model_name=about.get("model_name"),
        model_kwargs=about.get("model_from_pretrained_kwargs") or {},
        extra={name: value for name, value in about.items() if name not in known},
    )


def digest(folder: Path) -> str:
    """See pipeline.saes.sae_digest."""
    with _weights_file(folder).open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    return digest_of({"format": "saelens", "weights": weights, **read_metadata(folder).recipe()})


def read(folder: Path, device: str, block_rows: int | None) -> Encoder:
    """See pipeline.saes.load_sae."""
    from pipeline.saes import default_block_rows
    from pipeline.saes.encoder import Encoder

    metadata = read_metadata(folder)
    if metadata.normalize_activations == "expected_average_only_in":
        warnings.warn(
            f"SAE {folder} says normalize_activations: expected_average_only_in; as in SAELens nothing is "
            "scaled: the factor must have been folded into the weights when they were saved",
            stacklevel=3,
        )
    weights = _weights(folder, metadata, device)
    return Encoder(
        metadata, weights, _rule(metadata, weights), block_rows or default_block_rows(metadata.d_sae)
    )


def _config(folder: Path) -> dict[str, Any]:
    """cfg.json in the form of version 6, checked."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{folder / CONFIG} is not JSON: save the SAE again") from None
    if not isinstance(config, dict) or not {"d_in", "d_sae"} <= config.keys():
        raise InputError(f"{folder / CONFIG} names no d_in and d_sae: is it the configuration of an SAE?")
    config = config if isinstance(config.get("metadata"), dict) else _modernised(config)
    if config.get("architecture") not in ARCHITECTURES:
        raise InputError(
            f"{folder / CONFIG} has architecture {config.get('architecture')!r}; known: "
            f"{', '.join(ARCHITECTURES)} (a BatchTopK SAE is saved for inference as jumprelu)"
        )
    _refuse_unsupported(config, folder)
    return config


def _modernised(old: dict[str, Any]) -> dict[str, Any]:
    """A flat cfg.json from before version 6 in today's form, with SAELens' defaults of that time."""
    config = {OLD_KEYS.get(name, name): value for name, value in old.items()}
    activation = config.get("activation_fn") or "relu"
    config.setdefault("architecture", "standard")
    if activation == "topk":
        config |= {"architecture": "topk", "k": (config.get("activation_fn_kwargs") or {}).get("k")}
    elif activation != "relu":
        config["architecture"] = f"{config['architecture']} with {activation}"
    if isinstance(config.get("normalize_activations"), bool):
        config["normalize_activations"] = (
            "expected_average_only_in" if config["normalize_activations"] else "none"
        )
    return config | {"metadata": {"prepend_bos": True} | config}


def _refuse_unsupported(config: dict[str, Any], folder: Path) -> None:
    """Stop for settings that this reader would otherwise get wrong in silence."""
    how = config.get("normalize_activations") or "none"
    if how not in NORMALIZATIONS:
        raise InputError(
            f"{folder / CONFIG} has normalize_activations {how!r}; known: {', '.join(NORMALIZATIONS)}"
        )
    if config["metadata"].get("hook_head_index") is not None:
        raise InputError(
            f"{folder / CONFIG} has a hook_head_index; SAEs of one attention head are not supported"
        )


def _whole_number(k: Any, folder: Path) -> int:
    """A topk SAE's k."""
    if not isinstance(k, int | float) or k < 1 or k != int(k):
        raise InputError(f"{folder / CONFIG} has k {k!r}; a topk SAE needs a whole number from 1")
    return int(k)


def _weights_file(folder: Path) -> Path:
    """The weights' path."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"SAE {folder} has no {WEIGHTS}; it must lie beside {CONFIG}")
    return path


def _weights(folder: Path, metadata: SaeMetadata, device: str) -> Weights:
    """The weights in float32 on `device`, checked, decoder norms folded in where the SAE asks for that."""
    path = _weights_file(folder)
    weights = _known_names(_load(path, device), metadata, path)
    _check_shapes(weights, metadata, path)
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(
                f"{name} in {path} has NaN or infinity: the SAE's training failed, or the file is damaged"
            )
    if metadata.rescale_acts_by_decoder_norm:
        norm = weights["W_dec"].norm(dim=1)
        weights["W_enc"] = weights["W_enc"] * norm
        weights["b_enc"] = weights["b_enc"] * norm
        weights["W_dec"] = weights["W_dec"] / norm[:, None]
    return weights


def _load(path: Path, device: str) -> Weights:
    """All tensors of the file in float32; a threshold keeps the precision it was saved in."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {name: tensor.float().contiguous() for name, tensor in load_file(path, device=device).items()}
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({error}): copy it again") from None


def _known_names(weights: Weights, metadata: SaeMetadata, path: Path) -> Weights:
    """Exactly the architecture's arrays: an older spelling is read, a name that nothing reads is an error."""
    if "log_threshold" in weights:
        weights["threshold"] = weights.pop("log_threshold").exp()
    if bool((weights.get("scaling_factor", weights["b_dec"].new_ones(1)) == 1).all()):
        weights.pop("scaling_factor", None)
    wanted = {"W_enc", "W_dec", "b_dec", *ARCHITECTURES[metadata.architecture][1]}
    if weights.keys() != wanted:
        raise InputError(
            f"{path} holds {', '.join(sorted(weights))}; a {metadata.architecture} SAE has "
            f"{', '.join(sorted(wanted))}"
        )
    return weights


def _check_shapes(weights: Weights, metadata: SaeMetadata, path: Path) -> None:
    """Shapes must be those that cfg.json tells."""
    d_model, d_sae = metadata.d_model, metadata.d_sae
    shapes = {"W_enc": (d_model, d_sae), "W_dec": (d_sae, d_model), "b_dec": (d_model,)}
    for name, tensor in weights.items():
        wanted = shapes.get(name, (d_sae,))
        if tuple(tensor.shape) != wanted:
            raise InputError(f"{name} in {path} has shape {list(tensor.shape)}; {CONFIG} says {list(wanted)}")


def _rule(metadata: SaeMetadata, weights: Weights) -> Rule:
    """The architecture's rule."""
    module, _, name = ARCHITECTURES[metadata.architecture][0].partition(":")
    build: Callable[..., Rule] = getattr(importlib.import_module(module), name)
    return build(weights) if metadata.k is None else build(weights, metadata.k)
