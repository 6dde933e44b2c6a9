"""Arrays of .npy and .npz files, read only where the file holds what its header says.

NumPy makes room for the shape of a header before it reads: a file of 128 bytes may declare 10^13 numbers.
"""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

LONGEST_HEADER = 1 << 16
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npy(path: Path) -> NDArray[Any]:
    """The array of an .npy file; ValueError where the file is no such one, or too short for its header."""
    with path.open("rb") as file:
        check_header(file.read(LONGEST_HEADER), path.stat().st_size, path.name)
        file.seek(0)
        array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def check_npz(file: Path | IO[bytes]) -> None:
    """ValueError, or BadZipFile, where some array of an .npz file is too short for its header."""
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                with archive.open(member) as whole:
                    check_header(whole.read(LONGEST_HEADER), member.file_size, member.filename)


def check_header(begin: bytes, size: int, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type that an array's first bytes say; ValueError unless its `size` bytes hold just that."""
    file = io.BytesIO(begin)  # a header that claims to be longer ends here
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"{name} is an .npy of version {version}")
    try:
        shape, _, dtype = _HEADERS[version](file)
    except (SyntaxError, TokenError, RecursionError, MemoryError, TypeError, OverflowError) as error:
        raise ValueError(f"{name} has an invalid header ({type(error).__name__})") from None
    stored = size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which are not read")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != stored:
        raise ValueError(f"{name} declares shape {list(shape)} and stores {stored} bytes")
    return tuple(shape), dtype
