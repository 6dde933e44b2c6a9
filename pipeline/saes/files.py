"""Opening SAE files that nobody vouches for: names and shapes first, then tensors, and never code.

A file is checked against what its SAE should hold before anything of its size is allocated.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.saes.metadata import SaeMetadata
from schemas.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TensorFile:
    """The tensors of one file: names and shapes are known, `load` reads one of them as it is stored."""

    path: Path
    shapes: Mapping[str, Shape]
    load: Callable[[str], Tensor]

    def take(
        self, names: Mapping[str, str], metadata: SaeMetadata, ignore: Iterable[str] = ()
    ) -> dict[str, Tensor]:
        """Tensors by our name, float32, contiguous, on the CPU.

        `names` maps ours to the file's; `.T` behind the file's name transposes. A tensor that is missing, one
        that nothing reads (unless in `ignore`) and a wrong shape are InputErrors, before anything is loaded.
        """
        stored = {ours: theirs.removesuffix(".T") for ours, theirs in names.items()}
        self._check_names(set(stored.values()), metadata, set(ignore))
        wanted = expected_shapes(metadata)
        for ours, theirs in names.items():
            self._check_shape(stored[ours], wanted[ours][:: -1 if theirs.endswith(".T") else 1])
        return {ours: self._read(theirs) for ours, theirs in names.items()}

    def _check_names(self, wanted: set[str], metadata: SaeMetadata, ignored: set[str]) -> None:
        if self.shapes.keys() - ignored != wanted:
            raise InputError(
                f"{self.path} holds {_listed(self.shapes)}; a {metadata.architecture} SAE of format "
                f"{metadata.format} has {_listed(wanted)}"
            )

    def _check_shape(self, name: str, wanted: Shape) -> None:
        if tuple(self.shapes[name]) != wanted:
            raise InputError(
                f"{name} in {self.path} has shape {list(self.shapes[name])}; its configuration says "
                f"{list(wanted)}"
            )

    def _read(self, name: str) -> Tensor:
        tensor = self.load(name.removesuffix(".T")).float()
        return (tensor.T if name.endswith(".T") else tensor).contiguous()


def expected_shapes(metadata: SaeMetadata) -> dict[str, Shape]:
    """Shape of each array by SAELens' name, for every array that the SAE could have."""
    d_model, d_sae, d_out = metadata.d_model, metadata.d_sae, metadata.width_out
    per_feature = ("b_enc", "threshold", "b_gate", "b_mag", "r_mag")
    return {
        "W_enc": (d_model, d_sae),
        "W_dec": (d_sae, d_out),
        "b_dec": (d_out,),
        "W_skip": (d_out, d_model),
        **dict.fromkeys(per_feature, (d_sae,)),
    }


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"SAE {path.parent} has no {path.name}: is it complete?") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not JSON: save the SAE again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object: is it the configuration of an SAE?")
    return content


def positive_int(value: Any, name: str, path: Path) -> int:
    """A width or a count from a configuration."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value != int(value):
        raise InputError(f"{path} has {name} {value!r}; it must be a whole number from 1")
    return int(value)


def require(path: Path) -> Path:
    """The path of a file that must be there."""
    if not path.is_file():
        raise InputError(f"SAE {path.parent} has no {path.name}: copy it there, beside the other files")
    return path


def open_safetensors(path: Path) -> TensorFile:
    """A .safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(require(path), framework="numpy") as file:
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
    try:
        with zipfile.ZipFile(require(path)) as archive:
            shapes = {
                name.removesuffix(".npy"): _npy_shape(archive, name)
                for name in archive.namelist()
                if name.endswith(".npy")
            }
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise _damaged(path, error) from None

    def load(name: str) -> Tensor:
        import torch

        try:
            with np.load(path, allow_pickle=False) as arrays:
                return torch.from_numpy(np.ascontiguousarray(arrays[name]))
        except (zipfile.BadZipFile, ValueError, TypeError, OSError, EOFError) as error:
            raise _damaged(path, error) from None

    return TensorFile(path, shapes, load)


def _npy_shape(archive: zipfile.ZipFile, name: str) -> Shape:
    """Shape of one array of an .npz, from its header."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in headers:
            raise ValueError(f"{name} is an .npy of version {version}")
        shape, _, dtype = headers[version](member)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    return tuple(shape)


def open_torch(path: Path) -> TensorFile:
    """A .pt or .pth file with a flat dict of tensors, read with weights_only; other entries are left out."""
    import pickle

    import torch

    try:
        mmap = zipfile.is_zipfile(require(path))
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise _damaged(path, error) from None
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}; an SAE is saved as a dict of tensors")
    tensors = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return TensorFile(path, shapes, tensors.__getitem__)


def _damaged(path: Path, error: Exception) -> InputError:
    """The sentence about a file that can not be opened."""
    told = " ".join(str(error).split())[:200]
    return InputError(
        f"{path} is damaged, or holds more than tensors ({told}): copy it again, or save the SAE anew"
    )


def _listed(names: Iterable[str]) -> str:
    """Names for a sentence."""
    ordered = sorted(names)
    return ", ".join(ordered[:12]) + (f" and {len(ordered) - 12} more" if len(ordered) > 12 else "")
