"""Opening SAE files that nobody vouches for: names and shapes first, then tensors, and never code.

A file is checked against what its SAE should hold before anything of its size is allocated.
"""

from __future__ import annotations

import functools
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.saes.files.pickled import UNREADABLE, Shape, flattened, read_declared
from pipeline.saes.metadata import SaeMetadata
from schemas.errors import InputError
from schemas.npy import LONGEST_HEADER, check_header
from schemas.storage_failures import storage_failure

if TYPE_CHECKING:
    from torch import Tensor

TORCH_SUFFIXES = (".pt", ".pth")

BROKEN_NPZ = (
    zipfile.BadZipFile, zlib.error, ValueError, TypeError, OSError, EOFError, RuntimeError, KeyError,
)  # fmt: skip

BOMB_BYTES, BOMB_RATIO = 16 << 20, 100
"""An array larger than this, and that many times what it takes in its .npz, holds no trained weights."""

LONGEST_JSON = 16 << 20
"""Bytes of a configuration; that of an SAE has some thousand."""


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one file: names and shapes are known, `load` reads one of them as it is stored."""

    path: Path
    shapes: Mapping[str, Shape]
    load: Callable[[str], Tensor]
    values: Mapping[str, Any] = field(default_factory=dict)
    """Numbers, text and truth values that stand next to the tensors."""

    def take(
        self, names: Mapping[str, str], metadata: SaeMetadata, ignore: Iterable[str] = ()
    ) -> dict[str, Tensor]:
        """Tensors by our name, float32, contiguous, on the CPU.

        `names` maps ours to the file's; `.T` after the file's name transposes. A tensor that is missing, one
        that nothing reads (unless in `ignore`) and a wrong shape are InputErrors, before anything is loaded.
        """
        stored = {ours: stored_name.removesuffix(".T") for ours, stored_name in names.items()}
        if self.shapes.keys() - set(ignore) != set(stored.values()):
            raise InputError(
                f"{self.path} holds {_listed(self.shapes)}; a {metadata.architecture} SAE of format "
                f"{metadata.format} has {_listed(set(stored.values()))}"
            )
        d_model, d_sae, d_out = metadata.d_model, metadata.d_sae, metadata.width_out
        expected: dict[str, Shape] = {
            **dict.fromkeys(("b_enc", "threshold", "b_gate", "b_mag", "r_mag"), (d_sae,)),
            "W_enc": (d_model, d_sae),
            "W_dec": (d_sae, d_out),
            "b_dec": (d_out,),
            "W_skip": (d_out, d_model),
        }
        for ours, name in stored.items():
            wanted = expected[ours][:: -1 if names[ours].endswith(".T") else 1]
            if tuple(self.shapes[name]) != wanted:
                raise InputError(
                    f"{name} in {self.path} has shape {list(self.shapes[name])}; its configuration says "
                    f"{list(wanted)}"
                )
        return {ours: self._read(stored_name) for ours, stored_name in names.items()}

    def length_of(self, name: str) -> int:
        """Of a vector that must be one."""
        shape = self.shapes[name]
        if len(shape) != 1 or shape[0] < 1:
            ours = name.rpartition(".")[2]
            raise InputError(f"{ours} in {self.path} has shape {list(shape)}; it must be a vector")
        return shape[0]

    def _read(self, name: str) -> Tensor:
        tensor = self.load(name.removesuffix(".T"))
        if not tensor.is_floating_point():
            raise InputError(f"{name} in {self.path} is of type {tensor.dtype}; weights are floating point")
        tensor = tensor.float()
        return (tensor.T if name.endswith(".T") else tensor).contiguous()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        size = path.stat().st_size
        content = None if size > LONGEST_JSON else json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"SAE {path.parent} has no {path.name}: is it complete?") from None
    except OSError as error:
        raise storage_failure(error, path, "read") or InputError(
            f"{path} cannot be read ({error.strerror}): make it a readable file"
        ) from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not JSON: save the SAE again") from None
    if size > LONGEST_JSON:
        raise InputError(f"{path} has {size} bytes: is it the configuration of an SAE?")
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object: is it the configuration of an SAE?")
    return content


def positive_int(value: Any, name: str, path: Path) -> int:
    """A width or a count from a configuration."""
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or not 1 <= value < 10**40:
        shown = repr(value)[:40]
        raise InputError(f"{path} has {name} {shown}; it must be a whole number from 1")
    return int(value)


def optional_int(config: Mapping[str, Any], name: str, path: Path) -> int | None:
    """A number from 1 that a configuration may leave out."""
    return None if config.get(name) is None else positive_int(config[name], name, path)


def optional_text(config: Mapping[str, Any], name: str, path: Path) -> str | None:
    """A name that a configuration may leave out."""
    value = config.get(name)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{path} has {name} {value!r}; it must be text")
    return value or None


def flag(config: Mapping[str, Any], name: str, path: Path, default: bool = False) -> bool:
    """True or false from a configuration."""
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"{path} has {name} {value!r}; it must be true or false")
    return value


def require(path: Path) -> Path:
    """The path of a file that must be there."""
    if not path.is_file():
        raise InputError(f"SAE {path.parent} has no {path.name}: copy it there, next to the other files")
    return path


def open_safetensors(path: Path) -> TensorFile:
    """A .safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with require(path).open("rb"):  # safetensors says of a file that may not be read that it is not there
            pass
        with safe_open(path, framework="numpy") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None

    def load(name: str) -> Tensor:
        try:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from None
        return tensor

    return TensorFile(path, shapes, load)


def open_npz(path: Path) -> TensorFile:
    """A NumPy .npz file without pickled objects."""
    shapes = dict[str, Shape]()
    try:
        with zipfile.ZipFile(require(path)) as archive:
            for member in archive.infolist():
                name, size = member.filename, member.file_size
                if not name.endswith(".npy"):
                    continue
                if size > BOMB_BYTES and size > BOMB_RATIO * member.compress_size:
                    raise ValueError(f"{name} unpacks {member.compress_size} bytes to {size}")
                # the shape by the header alone, where the file holds as much as that says
                with archive.open(member) as whole:
                    shape, dtype = check_header(whole.read(LONGEST_HEADER), size, name)
                if dtype.kind not in "fiub":
                    raise ValueError(f"{name} holds {dtype}, not numbers")
                shapes[name.removesuffix(".npy")] = shape
    except BROKEN_NPZ as error:
        raise _damaged(path, error) from None

    def load(name: str) -> Tensor:
        import torch

        try:
            with np.load(path, allow_pickle=False) as arrays:
                return torch.from_numpy(np.ascontiguousarray(arrays[name]))
        except BROKEN_NPZ as error:
            raise _damaged(path, error) from None

    return TensorFile(path, shapes, load)


def open_torch(path: Path) -> TensorFile:
    """A .pt or .pth file with a dict of tensors; names in a dict in it follow the dict's name and a dot."""
    try:
        declared = read_declared(require(path))
    except UNREADABLE as error:
        raise _damaged(path, error) from None

    @functools.cache
    def content() -> dict[str, Any]:
        import torch

        return dict(flattened(torch.load(path, "cpu", weights_only=True, mmap=zipfile.is_zipfile(path))))

    def load(name: str) -> Tensor:
        try:
            tensor: Tensor = content()[name].detach()
        except UNREADABLE as error:
            raise _damaged(path, error) from None
        if tuple(tensor.shape) != declared.shapes[name]:
            raise InputError(f"{path} declares two shapes of {name}: copy it again, or save the SAE again")
        return tensor

    return TensorFile(path, declared.shapes, load, declared.values)


def single_torch_file(path: Path) -> Path | None:
    """`path` itself if it is a .pt or .pth file, or the only one in that folder and with no other weights."""
    if path.is_file():
        return path if path.suffix in TORCH_SUFFIXES else None
    there = (file for file in path.iterdir() if not file.name.startswith("."))
    files = [file for file in there if file.suffix in (*TORCH_SUFFIXES, ".safetensors", ".npz")]
    return single_torch_file(files[0]) if len(files) == 1 and files[0].is_file() else None


def torch_names(path: Path) -> set[str]:
    """Names of the tensors in `single_torch_file(path)`; none where there is no such file.

    A file in a folder may be of something else than an SAE: where it cannot be read, it has no names. A
    file that was given itself is reported.
    """
    file = single_torch_file(path)
    try:
        return set() if file is None else set(open_torch(file).shapes)
    except InputError:
        if path.is_file():
            raise
        return set()


def _damaged(path: Path, error: Exception) -> InputError:
    """The sentence about a file that cannot be opened."""
    reason = " ".join(str(error).split())[:200]
    return storage_failure(error, path, "read") or InputError(
        f"{path} is damaged, or holds more than tensors ({reason}): copy it again, or save the SAE again"
    )


def _listed(names: Iterable[str]) -> str:
    """Names for a sentence."""
    ordered = sorted(names) or ["no tensor"]
    return ", ".join(ordered[:12]) + (f" and {len(ordered) - 12} more" if len(ordered) > 12 else "")
