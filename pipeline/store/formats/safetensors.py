"""Small .safetensors files, read and written with NumPy alone.

A file is eight bytes with the length of its header, the header (JSON: name -> dtype, shape, place), and the
tensors' bytes one after another.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.values import F32

_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def save_tensors(path: Path, tensors: Mapping[str, F32]) -> None:
    """Write float32 arrays by name; the bytes are those of `safetensors.numpy.save_file`."""
    ordered = dict(sorted(tensors.items()))
    header, end = dict[str, Any](), 0
    for name, tensor in ordered.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8
    data = b"".join(tensor.tobytes() for tensor in ordered.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def load_tensors(content: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of a whole file by name, in their dtypes; ValueError where the file is damaged."""
    try:
        (length,) = struct.unpack_from("<Q", content)
        if length > len(content) - 8:
            raise ValueError(f"a header of {length} bytes in a file of {len(content)}")
        header = json.loads(content[8 : 8 + length])
        data = content[8 + length :]
        return {name: _array(about, data) for name, about in header.items() if name != "__metadata__"}
    except (struct.error, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not a safetensors file: {error}") from None


def _array(about: dict[str, Any], data: bytes) -> NDArray[Any]:
    start, stop = about["data_offsets"]
    if not 0 <= start <= stop <= len(data):
        raise ValueError(f"a tensor at {start} to {stop} of {len(data)} bytes")
    return np.frombuffer(data[start:stop], _DTYPES[about["dtype"]]).reshape(about["shape"])
