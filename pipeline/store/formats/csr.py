"""The token-major layout: a Zarr group in AnnData's csr_matrix encoding, one per site and shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numcodecs.blosc
import numpy as np
import zarr
from scipy import sparse
from zarr.codecs import BloscCodec, Crc32cCodec

from pipeline.store.formats.zarr_files import arrays_of, check_chunks, open_array, open_group
from schemas.layout import StorePath
from schemas.records import FORMAT_VERSION
from schemas.values import I32, I64, SparseFeatures

# Nonzeros in a chunk: 16 MiB of float32, so that a shard is a handful of files.
_CHUNK = 1 << 22
# Indices and float32 data holding float16 values, 673,171 nonzeros of the demo: with bytes shuffled in blocks
# of 512 KiB 2.93 B a nonzero in 28 ms at level 1, 2.87 B in 67 ms at level 5; bits shuffled are larger.
_LEVEL, _BLOCK = 1, 1 << 19

ONE_INDEX_TYPE_SINCE = 5
"""Format version."""

EVERY_CHUNK: Any = {"write_empty_chunks": True}
"""Chunks of zeros are written too, so that a missing one is noticed."""


def checked_codecs(values: np.dtype[Any], level: int = _LEVEL, block: int = 0) -> list[Any]:
    """Of numbers of this type: Blosc's zstd, then a checksum, for a flipped bit would be a wrong number.

    Stores written before have none there; each array's metadata says which it has.
    """
    blosc = BloscCodec(
        cname="zstd", clevel=level, shuffle="shuffle", typesize=values.itemsize, blocksize=block
    )
    return [blosc, Crc32cCodec()]


def index_dtype(nnz: int) -> np.dtype[Any]:
    """Of `indptr` and `indices` both: SciPy (`tocoo`, `nonzero`) and scikit-learn want one type for the two,
    and anndata reads them as they are.
    """
    return np.dtype(np.int32 if nnz <= np.iinfo(np.int32).max else np.int64)


def write_csr(path: Path, features: SparseFeatures, d_sae: int, format_version: int = FORMAT_VERSION) -> None:
    """Write float32 [N, d_sae]: `indptr` [N + 1] and `indices` [Z] of `index_dtype`, `data` float32 [Z].

    In passes of versions before 5 `indptr` is int64 and `indices` int32.
    """
    # Blosc's threads put their blocks in the order in which they end: one thread, so that bytes are the same.
    numcodecs.blosc.use_threads = False
    group = zarr.open_group(path, mode="w-", zarr_format=3)
    n_rows = len(features.indptr) - 1
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_rows, d_sae]})
    indptr, indices = features.indptr, features.indices
    if format_version >= ONE_INDEX_TYPE_SINCE:
        one = index_dtype(features.nnz)
        indptr, indices = indptr.astype(one), indices.astype(one)
    for name, values in (("indptr", indptr), ("indices", indices), ("data", features.data)):
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(max(1, min(len(values), _CHUNK)),),
            compressors=checked_codecs(values.dtype, block=_BLOCK),
            config=EVERY_CHUNK,
        )
        array[:] = values


def read_pattern(path: StorePath) -> tuple[I32, I64, tuple[int, int]]:
    """`indices`, `indptr` and shape of the matrix that `write_csr` wrote; ValueError where it is none."""
    (indices, indptr), (rows, d_sae) = _read(path, "indices", "indptr")
    check_structure(indices, indptr, rows, d_sae)
    return indices, indptr.astype(np.int64), (rows, d_sae)


def read_csr(path: StorePath) -> sparse.csr_matrix:
    """The matrix float32 [N, d_sae] that `write_csr` wrote; ValueError where it is none."""
    (data, indices, indptr), (rows, d_sae) = _read(path, "data", "indices", "indptr")
    check_structure(indices, indptr, rows, d_sae)
    if data.dtype != np.float32 or len(data) != len(indices):
        raise ValueError(f"{len(data)} values of {data.dtype} at {len(indices)} positions")
    return sparse.csr_matrix((data, indices, indptr), shape=(rows, d_sae))


def read_rows(path: StorePath, rows: range) -> sparse.csr_matrix:
    """Some rows of that matrix, float32 [len(rows), d_sae]: only the chunks that they lie in are read."""
    _, d_sae = open_group(path).attrs["shape"]
    indptr = open_array(path / "indptr")[rows.start : rows.stop + 1].astype(np.int64)
    part = slice(indptr[0], indptr[-1])
    indices, data = (open_array(path / name)[part] for name in ("indices", "data"))
    indptr -= indptr[0]
    check_structure(indices, indptr, len(rows), d_sae)
    return sparse.csr_matrix((data, indices, indptr), shape=(len(rows), d_sae))


def _read(path: StorePath, *names: str) -> tuple[list[Any], tuple[int, int]]:
    """Some arrays of a matrix, whole, and its shape; ValueError where a chunk is missing."""
    group = open_group(path)
    arrays = arrays_of(group, names)
    check_chunks(arrays)
    rows, d_sae = group.attrs["shape"]
    return [array[:] for array in arrays.values()], (rows, d_sae)


def check_structure(indices: I32, indptr: I64, rows: int, d_sae: int) -> None:
    """ValueError where SciPy, which checks nothing, would read beyond its arrays."""
    if len(indptr) != rows + 1 or indptr[0] != 0 or indptr[-1] != len(indices) or (np.diff(indptr) < 0).any():
        raise ValueError(f"its indptr is not that of {rows} rows and {len(indices)} activations")
    if len(indices) and not 0 <= indices.min() <= indices.max() < d_sae:
        raise ValueError(f"it holds features that are not 0 to {d_sae - 1}")
