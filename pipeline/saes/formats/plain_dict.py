"""A bare dict in a .pt file: `W_enc` [d_model, d_sae], `W_dec` [d_sae, d_model], `b_enc`, `b_dec`.

acts = relu((x - b_dec) @ W_enc + b_enc), reconstruction = acts @ W_dec + b_dec; with a `threshold` [d_sae]
JumpReLU. So Neel Nanda's, Connor Kissane's and Robert Krzyzanowski's SAEs are published, with NAME_cfg.json
next to NAME.pt (act_name, act_size, dict_size). The dict may lie in another, as {"state_dict": {...}}.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.saes.files.tensors import (
    TensorFile,
    flag,
    open_torch,
    optional_int,
    optional_text,
    read_json,
    require,
    single_torch_file,
    torch_names,
)
from pipeline.saes.formats import dictionary_learning
from pipeline.saes.metadata import SaeMetadata
from schemas.errors import InputError

if TYPE_CHECKING:
    from pipeline.saes.encoding.weights import Weights

LOOKS_FOR = "a .pt file with W_enc, W_dec, b_enc and b_dec, or a folder that holds one .pt file"

ARRAYS = ("W_enc", "W_dec", "b_enc", "b_dec")

NESTS = ("", "state_dict.", "model_state_dict.", "sae_state_dict.", "sae.", "model.", "params.", "weights.")
"""Names of the dict that the arrays may lie in, with a dot."""

HOOK_KEYS = ("act_name", "hook_name", "hook_point")
CONTEXT_KEYS = ("context_size", "seq_len", "ctx_len")


def matches(path: Path) -> bool:
    """Whether this reader is the one for `path`."""
    return bool(_nests(torch_names(path))) and not dictionary_learning.matches(path)


def read_metadata(path: Path) -> SaeMetadata:
    """Read names and shapes, and the .json next to the file, if there is one."""
    file = open_torch(_file(path))
    nest, *_ = _nests(file.shapes)
    candidates = (file.path.with_name(f"{file.path.stem}{ending}") for ending in ("_cfg.json", ".json"))
    where = next((candidate for candidate in candidates if candidate.is_file()), None)
    config = {} if where is None else read_json(where)
    d_model, d_sae = _widths(file, nest, config, where or file.path)
    jumps = f"{nest}threshold" in file.shapes
    subtracts = flag(config, "apply_b_dec_to_input", where or file.path, True)
    hook_names = (optional_text(config, key, where or file.path) for key in HOOK_KEYS)
    hook_name = next(filter(None, hook_names), None)
    context = next((key for key in CONTEXT_KEYS if config.get(key) is not None), "")
    return SaeMetadata(
        architecture="jumprelu" if jumps else "standard",
        d_model=d_model,
        d_sae=d_sae,
        apply_b_dec_to_input=subtracts,
        format="plain_dict",
        hook_name=hook_name,
        context_size=optional_int(config, context, where or file.path),
        model_name=optional_text(config, "model_name", where or file.path),
        notes=_notes(subtracts, jumps, hook_name),
        extra=config,
    )


def weight_files(path: Path) -> list[Path]:
    """See pipeline.saes.formats."""
    return [require(_file(path))]


def read_weights(path: Path, metadata: SaeMetadata) -> Weights:
    """See pipeline.saes.formats. Tensors next to the dict in which the SAE lies are left alone."""
    file = open_torch(_file(path))
    nest, *_ = _nests(file.shapes)
    wanted = (*ARRAYS, *(("threshold",) if metadata.architecture == "jumprelu" else ()))
    ignored = {name for name in file.shapes if not name.startswith(nest)}
    return file.take({name: nest + name for name in wanted}, metadata, ignored)


def _file(path: Path) -> Path:
    return single_torch_file(path) or path


def _nests(names: Iterable[str]) -> list[str]:
    """Of NESTS those in which the arrays lie."""
    return [nest for nest in NESTS if {nest + array for array in ARRAYS} <= set(names)]


def _widths(file: TensorFile, nest: str, config: dict[str, Any], where: Path) -> tuple[int, int]:
    """d_model and d_sae: of the biases, and as the configuration has them."""
    widths = []
    for name, key in (("b_dec", "act_size"), ("b_enc", "dict_size")):
        widths.append(width := file.length_of(nest + name))
        if optional_int(config, key, where) not in (None, width):
            raise InputError(f"{where} has {key} {config[key]}, {file.path} {width}: they belong to two SAEs")
    return widths[0], widths[1]


def _notes(subtracts: bool, jumps: bool, hook_name: str | None) -> tuple[str, ...]:
    notes = [f"The file names no class: b_dec is {'' if subtracts else 'not '}subtracted from x."]
    if jumps:
        notes.append("It has a threshold, so it is read as JumpReLU.")
    if hook_name is not None and hook_name.endswith("hook_z"):
        notes.append("hook_z is read flattened, [heads * d_head].")
    return tuple(notes)
