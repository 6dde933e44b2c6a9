"""Gemma Scope 2: `params.safetensors` with w_enc [D, F], b_enc, w_dec, b_dec, threshold and perhaps
affine_skip_connection [D, O], next to a `config.json`: JumpReLU SAEs and transcoders of Gemma 3.

Where it reads and writes is what `hf_hook_point_in` and `hf_hook_point_out` of its config.json say, by
TransformerLens' names (`pipeline.saes.module_points`). Where they are missing, the folder's name says it
(`resid_post`, `transcoder`, ...; `layer_17_width_16k_l0_medium`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.saes.files.tensors import TensorFile, open_safetensors, read_json, require
from pipeline.saes.metadata import SaeMetadata
from pipeline.saes.module_points import hook_at, points_of
from schemas.errors import InputError

if TYPE_CHECKING:
    from pipeline.saes.encoding.weights import Weights

CONFIG, WEIGHTS = "config.json", "params.safetensors"
LOOKS_FOR = f"a folder with {CONFIG} and {WEIGHTS}"

SKIP = "affine_skip_connection"

NAMES = {"W_enc": "w_enc", "b_enc": "b_enc", "W_dec": "w_dec", "b_dec": "b_dec", "threshold": "threshold"}

HOOKS = {
    "resid_post": ("hook_resid_post", None),
    "attn_out": ("attn.hook_z", None),
    "mlp_out": ("hook_mlp_out", None),
    "transcoder": ("ln2.hook_out", "hook_mlp_out"),
}
"""Part of the folder's path -> the hook in a block, and that of what it reconstructs."""

SAELENS_HOOK = "hook_mlp_in"
"""What SAELens' loader names for a transcoder: the residual stream before the norm."""


def matches(path: Path) -> bool:
    """Whether this reader is the one for `path`."""
    return path.name == WEIGHTS or (path / WEIGHTS).is_file()


def read_metadata(path: Path) -> SaeMetadata:
    """Read config.json, the shapes of the tensors and the path."""
    folder = _folder(path)
    config = read_json(folder / CONFIG)
    if config.get("architecture") != "jump_relu":
        raise InputError(
            f"{folder / CONFIG} has architecture {config.get('architecture')!r}; a Gemma Scope 2 SAE has "
            "jump_relu"
        )
    file = open_safetensors(folder / WEIGHTS)
    d_model, d_sae, d_out = _widths(file)
    # the last two parts of the path say kind and layer; links are not followed
    parts = folder.absolute().parts[-2:]
    kind = next((kind for kind in HOOKS if kind in "/".join(parts)), None)
    layer = re.search(r"layer_(\d+)", folder.absolute().name)
    transcoder = kind == "transcoder" or SKIP in file.shapes or "hf_hook_point_out" in config
    hook_in, hook_out = _hooks(config, kind, int(layer[1]) if layer else None)
    return SaeMetadata(
        architecture="jumprelu",
        d_model=d_model,
        d_sae=d_sae,
        apply_b_dec_to_input=False,
        transcoder=transcoder,
        d_out=d_out if transcoder else None,
        skip=SKIP in file.shapes,
        format="gemma_scope_2",
        hook_name=hook_in,
        hook_name_out=hook_out if transcoder else None,
        prepend_bos=True,
        context_size=1024,
        model_name=_model_name(config.get("model_name")),
        notes=tuple(_notes(hook_in)),
        extra=config,
    )


def weight_files(path: Path) -> list[Path]:
    """See pipeline.saes.formats."""
    return [require(_folder(path) / WEIGHTS)]


def read_weights(path: Path, metadata: SaeMetadata) -> Weights:
    """See pipeline.saes.formats."""
    names = NAMES | ({"W_skip": f"{SKIP}.T"} if metadata.skip else {})
    return open_safetensors(_folder(path) / WEIGHTS).take(names, metadata)


def _folder(path: Path) -> Path:
    return path.parent if path.name == WEIGHTS else path


def _widths(file: TensorFile) -> tuple[int, int, int]:
    """D, F and the width of a reconstruction."""
    w_enc, w_dec = (tuple(file.shapes.get(name, ())) for name in ("w_enc", "w_dec"))
    if len(w_enc) == 2 and len(w_dec) == 3:
        raise InputError(
            f"{file.path} is a cross-layer transcoder: it writes to {w_dec[1]} layers at once, which a site "
            "cannot hold; choose a transcoder of one layer"
        )
    if len(w_enc) != 2 or len(w_dec) != 2:
        raise InputError(
            f"{file.path} holds {', '.join(sorted(file.shapes))}; a Gemma Scope 2 SAE has w_enc and w_dec "
            "with two dimensions"
        )
    return w_enc[0], w_enc[1], w_dec[1]


def _model_name(configured: Any) -> str | None:
    """The model's name in the hub, as SAELens writes it."""
    if not isinstance(configured, str):
        return None
    name = configured if "google" in configured else f"google/{configured}"
    name = name.replace("-v3", "-3")
    return name.replace("-pt", "") if "270m" in name else name


def _hooks(config: dict[str, Any], kind: str | None, layer: int | None) -> tuple[str | None, str | None]:
    """Where it reads and what it reconstructs: as its file says, else as SAEs of its kind of folder do."""
    hook_in, hook_out = HOOKS[kind] if kind and layer is not None else (None, None)
    point_in, point_out = points_of(config)
    return (
        hook_at(point_in) if point_in is not None else hook_in and f"blocks.{layer}.{hook_in}",
        hook_at(point_out) if point_out is not None else hook_out and f"blocks.{layer}.{hook_out}",
    )


def _notes(hook_in: str | None) -> list[str]:
    """What was decided, a sentence each."""
    if hook_in is None or not hook_in.endswith(HOOKS["transcoder"][0]):
        return []
    return [
        f"It reads {hook_in}, the output of the norm before the MLP with its gain, as its publishers say; "
        f"SAELens' loader names {SAELENS_HOOK}, which is before that norm."
    ]
