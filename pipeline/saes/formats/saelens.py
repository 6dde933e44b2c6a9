"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, from before version 6 too."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.saes.architectures import array_names
from pipeline.saes.files import open_safetensors, positive_int, read_json, require
from pipeline.saes.metadata import NORMALIZATIONS, SaeMetadata
from schemas.errors import InputError

if TYPE_CHECKING:
    from pipeline.saes.weights import Weights

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
LOOKS_FOR = f"a folder with {CONFIG} and {WEIGHTS}"

ARCHITECTURES = {
    "standard": ("standard", False, False),
    "jumprelu": ("jumprelu", False, False),
    "gated": ("gated", False, False),
    "topk": ("topk", False, False),
    "abstopk": ("abstopk", False, False),
    "transcoder": ("standard", True, False),
    "skip_transcoder": ("standard", True, True),
    "jumprelu_transcoder": ("jumprelu", True, False),
    "jumprelu_skip_transcoder": ("jumprelu", True, True),
}
"""Their architecture -> (ours, whether it is a transcoder, whether it has a skip connection)."""

OLD_KEYS = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
"""Renamed before version 6."""

UNDERSTOOD = {
    "hook_name", "hook_name_out", "hook_head_index", "prepend_bos", "context_size", "seqpos_slice",
    "model_name", "model_class_name", "model_from_pretrained_kwargs",
}  # fmt: skip


def matches(path: Path) -> bool:
    """Whether this reader is the one for `path`."""
    return (path / CONFIG).is_file() and not (path / "sae.safetensors").is_file()


def read_metadata(path: Path) -> SaeMetadata:
    """Read cfg.json."""
    config = _config(path)
    about: dict[str, Any] = config["metadata"]
    architecture, transcoder, skip = ARCHITECTURES[config["architecture"]]
    return SaeMetadata(
        architecture=architecture,
        d_model=positive_int(config["d_in"], "d_in", path / CONFIG),
        d_sae=positive_int(config["d_sae"], "d_sae", path / CONFIG),
        apply_b_dec_to_input=bool(config.get("apply_b_dec_to_input", True)) and not transcoder,
        normalize_activations=config.get("normalize_activations") or "none",
        k=positive_int(config["k"], "k", path / CONFIG) if architecture in ("topk", "abstopk") else None,
        rescale_acts_by_decoder_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
        transcoder=transcoder,
        d_out=positive_int(config["d_out"], "d_out", path / CONFIG) if transcoder else None,
        skip=skip,
        hook_name=about.get("hook_name"),
        hook_name_out=about.get("hook_name_out"),
        hook_head_index=about.get("hook_head_index"),
        prepend_bos=about.get("prepend_bos"),
        context_size=about.get("context_size"),
        seqpos_slice=_slice(about.get("seqpos_slice")),
        model_name=about.get("model_name"),
        model_class_name=about.get("model_class_name"),
        model_kwargs=about.get("model_from_pretrained_kwargs") or {},
        extra={name: value for name, value in about.items() if name not in UNDERSTOOD},
    )


def weight_files(path: Path) -> list[Path]:
    """See pipeline.saes.formats."""
    return [require(path / WEIGHTS)]


def read_weights(path: Path, metadata: SaeMetadata) -> Weights:
    """See pipeline.saes.formats. A threshold keeps the precision it was saved in."""
    if metadata.normalize_activations == "expected_average_only_in":
        warnings.warn(
            f"SAE {path} says normalize_activations: expected_average_only_in; as in SAELens nothing is "
            "scaled: the factor must have been folded into the weights when they were saved",
            stacklevel=3,
        )
    file = open_safetensors(path / WEIGHTS)
    names = {name: name for name in array_names(metadata.architecture, skip=metadata.skip)}
    if "log_threshold" in file.shapes:
        names["threshold"] = "log_threshold"
    weights = file.take(names, metadata, ignore={"scaling_factor"})
    if "log_threshold" in file.shapes:
        weights["threshold"] = weights["threshold"].exp()
    if "scaling_factor" in file.shapes and not bool((file.load("scaling_factor") == 1).all()):
        raise InputError(
            f"{path / WEIGHTS} has a scaling_factor other than 1, not applied by SAELens any more: fold it in"
        )
    return weights


def _config(folder: Path) -> dict[str, Any]:
    """cfg.json in the form of version 6, checked."""
    config = read_json(folder / CONFIG)
    if not {"d_in", "d_sae"} <= config.keys():
        raise InputError(f"{folder / CONFIG} names no d_in and d_sae: is it the configuration of an SAE?")
    config = config if isinstance(config.get("metadata"), dict) else _modernised(config)
    if config.get("architecture") not in ARCHITECTURES:
        raise InputError(
            f"{folder / CONFIG} has architecture {config.get('architecture')!r}; known: "
            f"{', '.join(ARCHITECTURES)} (a BatchTopK SAE is saved for inference as jumprelu)"
        )
    how = config.get("normalize_activations") or "none"
    if how not in NORMALIZATIONS:
        raise InputError(
            f"{folder / CONFIG} has normalize_activations {how!r}; known: {', '.join(NORMALIZATIONS)}"
        )
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


def _slice(value: Any) -> tuple[int | None, ...] | None:
    """A slice of positions, None when it takes them all."""
    if not isinstance(value, list | tuple) or all(part is None for part in value):
        return None
    return tuple(value)
