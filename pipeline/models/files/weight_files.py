"""What the files of a model's weights say of their size, before any of it is in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.models.files.model_files import CONFIG, INDEX, config_of
from schemas.errors import InputError
from schemas.run import file as run_file

OTHERS = ("bin", "pt", "pth", "gguf")
"""Suffixes of weights that have no header that could be read here."""

MOST_HEADER = 100_000_000
"""Bytes of a header that safetensors itself reads at most."""

PER_BYTE = 8
"""Numbers of a model in a byte of its files, at most: one bit each."""

LAYERS = (
    "n_layer", "n_layers", "num_layers", "num_hidden_layers", "num_encoder_layers", "num_decoder_layers",
    "encoder_layers", "decoder_layers", "n_blocks", "depth",
)  # fmt: skip
WIDTHS = ("hidden_size", "n_embd", "d_model")
SIZES = (
    "vocab_size", "intermediate_size", "n_inner", "d_ff", "ffn_dim", "num_attention_heads", "n_head",
    "num_key_value_heads", "head_dim", "num_experts", "num_local_experts", "n_routed_experts", "n_positions",
)  # fmt: skip
"""Keys of a config.json that say how often, how wide and how large a model's tensors are."""


def weight_bytes(model: run_file.Model) -> int:
    """Bytes of the weights of a local model folder in the dtype requested; 0 where no file says so.

    From the headers of safetensors files; other files count as they are.
    """
    folder = Path(model.path)
    if not folder.is_dir():
        return 0
    sizes = {"float32": 4, "bfloat16": 2, "float16": 2}
    parameters = sum(math.prod(shape) for file in _safetensors(folder) for shape in _shapes(file))
    return parameters * sizes[model.dtype] or sum(_sizes(folder, OTHERS))


def check_size(folder: Path, path: str) -> None:
    """InputError where config.json names a model that is larger than its weights' files can hold.

    A model of that size would be made, in memory or in objects, before its weights are read.
    """
    most = PER_BYTE * sum(_sizes(folder, ("safetensors", *OTHERS)))
    tensors = sum(1 for file in _safetensors(folder) for _ in _shapes(file))
    config = config_of(folder / CONFIG)
    # the parts of a multimodal model have configurations of their own: text_config, vision_config ...
    inner = (part for name, part in config.items() if name.endswith("_config") and isinstance(part, dict))
    for part in (config, *inner):
        width = next((value for _, value in _ints(part, WIDTHS)), 1)
        for name, value in (*_ints(part, (*WIDTHS, *LAYERS, *SIZES)), *_listed(part)):
            if value * (width if name in (*LAYERS, *SIZES) else 1) > most:
                raise _too_large(
                    path, name, value, f"more than weights of {most // PER_BYTE:,} bytes can hold"
                )
        for name, value in _ints(part, LAYERS):
            if tensors and value > tensors and not _sizes(folder, OTHERS):
                raise _too_large(path, name, value, f"but its weights are {tensors:,} tensors")


def _too_large(path: str, name: str, value: int, why: str) -> InputError:
    return InputError(f"model {path}: {name} is {value} in its {CONFIG}, {why}: copy the model again")


def _listed(config: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Whole numbers in lists, as how often a list of kinds of layers is repeated."""
    for name, values in config.items():
        rest = list(values) if isinstance(values, list) else []
        while rest:
            value = rest.pop()
            if isinstance(value, int):
                yield name, value
            elif isinstance(value, list):
                rest += value


def _ints(config: dict[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Of these keys those that hold a whole number."""
    yield from ((name, config[name]) for name in names if isinstance(config.get(name), int))


def _sizes(folder: Path, suffixes: tuple[str, ...]) -> list[int]:
    """Bytes of the files of these kinds."""
    return [file.stat().st_size for suffix in suffixes for file in folder.glob(f"[!.]*.{suffix}")]


def _safetensors(folder: Path) -> set[Path]:
    """A model's safetensors files: those that its index names, else all but a second, consolidated copy."""
    index, files = folder / INDEX, set(folder.glob("[!.]*.safetensors"))
    if index.is_file():
        named = config_of(index).get("weight_map")
        if not isinstance(named, dict):
            raise InputError(f"{index} has no weight_map: copy the model again")
        return {file for file in files if file.name in map(str, named.values())}
    return {file for file in files if not file.name.startswith("consolidated")} or files


def _shapes(file: Path) -> Iterator[list[int]]:
    """Shapes of the tensors of a safetensors file: its header's length in 8 bytes, then the header."""
    damaged = InputError(f"{file} is damaged, its header cannot be read: copy the model again")
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > min(MOST_HEADER, file.stat().st_size):
            raise damaged
        try:
            header = json.loads(opened.read(length))
        except (ValueError, RecursionError):
            raise damaged from None
    if not isinstance(header, dict):
        raise damaged
    for name, tensor in header.items():
        if name != "__metadata__":
            shape = tensor.get("shape") if isinstance(tensor, dict) else None
            if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
                raise damaged
            yield shape
