"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, from before version 6 too, and checkpoints of
its training, which are read in the form that SAELens saves for inference in the end.

After SAELens 6.54: loading/pretrained_sae_loaders.py, saes/*.py, training/activation_scaler.py.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.saes.encoding.architectures import array_names
from pipeline.saes.files.tensors import TensorFile, flag, open_safetensors, positive_int, read_json, require
from pipeline.saes.metadata import NORMALIZATIONS, SaeMetadata
from pipeline.saes.module_points import hook_at, points_of
from schemas.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.saes.encoding.weights import Weights

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
LOOKS_FOR = f"a folder with {CONFIG} and {WEIGHTS}"

ARCHITECTURES = {
    "standard": ("standard", False, False),
    "jumprelu": ("jumprelu", False, False),
    "gated": ("gated", False, False),
    "topk": ("topk", False, False),
    "abstopk": ("abstopk", False, False),
    "batchtopk": ("jumprelu", False, False),
    "matryoshka_batchtopk": ("jumprelu", False, False),
    "transcoder": ("standard", True, False),
    "skip_transcoder": ("standard", True, True),
    "jumprelu_transcoder": ("jumprelu", True, False),
    "jumprelu_skip_transcoder": ("jumprelu", True, True),
}
"""Their architecture -> (ours, whether it is a transcoder, whether it has a skip connection)."""

IN_TRAINING = ("batchtopk", "matryoshka_batchtopk")
"""Architectures that a checkpoint of a training has; SAELens saves them as jumprelu in the end."""

ELSEWHERE = {
    "matching_pursuit": "; saelens:PATH reads it through the sae-lens package",
    "temporal": "; a temporal SAE attends over its context, so its features do not depend on one token alone",
}
"""Why an architecture is not among them, and what to do."""

RESCALED = ("topk", "abstopk", *IN_TRAINING)
"""Architectures for which SAELens reads rescale_acts_by_decoder_norm."""

FACTORS = ("scaling_factor", "finetuning_scaling_factor")
"""Names of the factors of activations that finetuning found, float [F]; used in decode alone."""

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
    if path.name == WEIGHTS:
        return (path.parent / CONFIG).is_file()
    others = (path / "sae.safetensors").is_file() and not (path / WEIGHTS).is_file()
    return (path / CONFIG).is_file() and not others


def read_metadata(path: Path) -> SaeMetadata:
    """Read cfg.json."""
    return metadata_of(read_json(_folder(path) / CONFIG), _folder(path) / CONFIG)


def weight_files(path: Path) -> list[Path]:
    """See pipeline.saes.formats."""
    return [require(_folder(path) / WEIGHTS)]


def settings(path: Path) -> dict[str, Any]:
    """See pipeline.saes.formats: the factor of x that a training's checkpoint keeps in its own file."""
    scale = _unfolded_scale(_folder(path))
    return {} if scale is None else {"input_scale": scale}


def read_weights(path: Path, metadata: SaeMetadata) -> Weights:
    """See pipeline.saes.formats. A threshold keeps the precision it was saved in."""
    from pipeline.saes.encoding.weights import fold_input_scale

    folder = _folder(path)
    weights, factor = _stored(open_safetensors(folder / WEIGHTS), metadata)
    if factor is not None and not bool((factor - 1).abs().max() <= 1e-5):  # as SAELens' allclose
        wanted = flag(read_json(folder / CONFIG), "finetuning_scaling_factor", folder / CONFIG)
        if not wanted or metadata.rescale_acts_by_decoder_norm:
            raise InputError(
                f"{folder / WEIGHTS} has a scaling_factor other than 1, but its configuration does not have "
                "finetuning_scaling_factor: fold it into W_dec, or set that key"
            )
        # it scales reconstructions, not features
        weights["W_dec"] = weights["W_dec"] * factor[:, None]
    scale = _unfolded_scale(folder)
    if scale is None:
        return weights
    if metadata.rescale_acts_by_decoder_norm and "threshold" in weights:
        # it is compared with pre-activations times the norms of W_dec, which are divided by the scale
        weights["threshold"] = weights["threshold"] / scale
    return fold_input_scale(weights, scale)


def metadata_of(config: dict[str, Any], where: Path | str) -> SaeMetadata:
    """From the contents of a cfg.json; `where` it stands, for sentences."""
    config = _checked(config, where)
    about: dict[str, Any] = config["metadata"]
    positions = about.get("seqpos_slice")
    if not isinstance(positions, list | tuple) or all(part is None for part in positions):
        positions = None  # it takes them all
    architecture, transcoder, skip = ARCHITECTURES[config["architecture"]]
    subtracts = flag(config, "apply_b_dec_to_input", Path(where), default=not transcoder)
    if subtracts and transcoder:
        raise InputError(
            f"{where} has apply_b_dec_to_input true, which SAELens refuses for a transcoder: set it to false"
        )
    # a module of Hugging Face's that is named counts before SAELens' own name of the hook
    point_in, point_out = points_of(about)
    return SaeMetadata(
        architecture=architecture,
        d_model=positive_int(config["d_in"], "d_in", Path(where)),
        d_sae=positive_int(config["d_sae"], "d_sae", Path(where)),
        apply_b_dec_to_input=subtracts,
        normalize_activations=config.get("normalize_activations") or "none",
        # the k of an old TopK SAE stands in activation_fn_kwargs alone
        k=_k(config, Path(where)) if architecture in ("topk", "abstopk") else None,
        rescale_acts_by_decoder_norm=config["architecture"] in RESCALED
        and flag(config, "rescale_acts_by_decoder_norm", Path(where)),
        transcoder=transcoder,
        d_out=positive_int(config["d_out"], "d_out", Path(where)) if transcoder else None,
        skip=skip,
        hook_name=hook_at(point_in) or about.get("hook_name"),
        hook_name_out=hook_at(point_out) or about.get("hook_name_out"),
        hook_head_index=_head(about.get("hook_head_index"), where),
        prepend_bos=about.get("prepend_bos"),
        context_size=about.get("context_size"),
        seqpos_slice=None if positions is None else tuple(positions),
        model_name=about.get("model_name"),
        model_class_name=about.get("model_class_name"),
        model_kwargs=about.get("model_from_pretrained_kwargs") or {},
        notes=tuple(_notes(config)),
        extra={name: value for name, value in about.items() if name not in UNDERSTOOD},
    )


def _k(config: dict[str, Any], where: Path) -> int:
    """The k of a TopK SAE, which may stand in activation_fn_kwargs alone."""
    given = config.get("k")
    return positive_int(_activation_options(config).get("k") if given is None else given, "k", where)


def _activation_options(config: dict[str, Any]) -> dict[str, Any]:
    options = config.get("activation_fn_kwargs")
    return options if isinstance(options, dict) else {}


def _folder(path: Path) -> Path:
    return path.parent if path.name == WEIGHTS else path


def _stored(file: TensorFile, metadata: SaeMetadata) -> tuple[Weights, Tensor | None]:
    """The weights in the file, a threshold in whichever form it has; and finetuning's factor, if any."""
    names = {name: name for name in array_names(metadata.architecture, skip=metadata.skip)}
    one_for_all = "topk_threshold" in file.shapes and metadata.architecture == "jumprelu"
    if one_for_all:
        del names["threshold"]
    elif "log_threshold" in file.shapes:
        names["threshold"] = "log_threshold"
    ignored = {*FACTORS, *(("topk_threshold",) if one_for_all else ())}
    weights = file.take(names, metadata, ignored)
    if one_for_all:
        weights["threshold"] = _everywhere(file, "topk_threshold", metadata.d_sae)
    elif "log_threshold" in file.shapes:
        weights["threshold"] = weights["threshold"].exp()
    factor = next((name for name in FACTORS if name in file.shapes), None)
    return weights, None if factor is None else _everywhere(file, factor, metadata.d_sae)


def _everywhere(file: TensorFile, name: str, d_sae: int) -> Tensor:
    """One number, or one for each feature, as float32 [F]."""
    if tuple(file.shapes[name]) not in ((), (1,), (d_sae,)):
        raise InputError(
            f"{name} in {file.path} has shape {list(file.shapes[name])}; it must be one number or {d_sae}"
        )
    return file.load(name).float().expand(d_sae).contiguous()


def _unfolded_scale(folder: Path) -> float | None:
    """What a checkpoint's x was multiplied by in training, when that is not in its weights yet."""
    if not (folder / SCALER).is_file():
        return None
    scaler = read_json(folder / SCALER)
    if scaler.get("has_whitening"):
        raise InputError(
            f"SAE {folder} is a checkpoint of a training with whitening, which is folded into the weights "
            "when the training ends: give the folder saved then"
        )
    scale = scaler.get("scaling_factor")
    if scale is None:
        return None
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
        raise InputError(f"{folder / SCALER} has scaling_factor {scale!r}; it must be a number above 0")
    return float(scale)


def _checked(config: dict[str, Any], where: Path | str) -> dict[str, Any]:
    """A configuration in the form of version 6, with an architecture and a normalisation that we have."""
    if not {"d_in", "d_sae"} <= config.keys():
        of_sparsify = " (of sparsify, whose sae.safetensors is missing?)" if "num_latents" in config else ""
        raise InputError(
            f"{where} names no d_in and d_sae{of_sparsify}: is it the configuration of a SAELens SAE?"
        )
    config = _modernised(config) if _is_old(config) else config
    architecture = str(config.get("architecture"))
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{where} has architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}"
            f"{ELSEWHERE.get(architecture, '')}"
        )
    how = config.get("normalize_activations") or "none"
    if how not in NORMALIZATIONS:
        why = " (whitening is folded into the weights when the training ends: give the folder saved then)"
        raise InputError(
            f"{where} has normalize_activations {how!r}; known: {', '.join(NORMALIZATIONS)}"
            f"{why if how == 'covariance_whitening' else ''}"
        )
    return config


def _is_old(config: dict[str, Any]) -> bool:
    """Whether SAELens takes it for one from before version 6: where nothing says that it is not."""
    about = config.get("metadata")
    if not isinstance(about, dict):
        return True
    version = config.get("sae_lens_version") or about.get("sae_lens_version")
    major = re.match(r"v?(\d{1,9})", str(version or "0").strip())
    return major is not None and int(major[1]) < 6


def _modernised(old: dict[str, Any]) -> dict[str, Any]:
    """A cfg.json from before version 6 in today's form, with SAELens' defaults of that time.

    It is flat. What its metadata say nonetheless is kept, which SAELens drops.
    """
    config = {OLD_KEYS.get(name, name): value for name, value in old.items() if name != "metadata"}
    about = old["metadata"] if isinstance(old.get("metadata"), dict) else {}
    activation = config.get("activation_fn") or "relu"
    config.setdefault("architecture", "standard")
    k = _activation_options(config).get("k")
    if activation == "topk" and k is not None:
        config["architecture"] = "topk"
    elif activation not in ("relu", config["architecture"]):
        config["architecture"] = f"{config['architecture']} with {activation}"
    if config["architecture"] == "topk" and k is not None:
        config["k"] = k
    if isinstance(config.get("normalize_activations"), bool):
        config["normalize_activations"] = (
            "expected_average_only_in" if config["normalize_activations"] else "none"
        )
    return config | {"metadata": {"prepend_bos": True} | config | about}


def _notes(config: dict[str, Any]) -> list[str]:
    """What was decided for this SAE, a sentence each."""
    notes = []
    if config["architecture"] in IN_TRAINING:
        notes.append(
            f"A checkpoint of a {config['architecture']} training, read as SAELens saves it for inference: a "
            "feature fires above the threshold of the training, whatever else is in the batch."
        )
    dtype = str(config.get("dtype") or "float32").removeprefix("torch.")
    if "jumprelu" in config["architecture"] and dtype in ("bfloat16", "float16"):
        notes.append(
            f"SAELens rounds the thresholds to {dtype} when it loads them; here they are as stored, so a "
            "feature within that rounding of its threshold may differ."
        )
    named, (point, _) = config["metadata"].get("hook_name"), points_of(config["metadata"])
    if (hook := hook_at(point)) not in (None, named):
        notes.append(f"It reads {hook}, which is {point}; its hook_name is {named}, another place.")
    return notes


def _head(value: Any, where: Path | str) -> int | None:
    """The index of an attention head."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise InputError(f"{where} has hook_head_index {value!r}; it must be the number of a head, from 0")
    return value
