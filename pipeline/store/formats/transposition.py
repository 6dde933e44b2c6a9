"""Rounding of activations to what is stored, and the turn from token-major to feature-major and back.

Shapes: N rows of a shard, F = d_sae features, Z nonzeros.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from schemas.errors import ShardError
from schemas.names import ActivationDtype
from schemas.values import F32, I64, Bool, Postings, SparseFeatures


def round_activations(features: SparseFeatures, dtype: ActivationDtype) -> tuple[SparseFeatures, int, float]:
    """Round to `dtype` (half to even) and back to float32; entries that become 0 are dropped.

    Returns the rounded features, how many activations underflowed to 0, and the largest
    |rounded - value| / |value| among those kept. A value that is not finite, or that `dtype` cannot hold, is
    a ShardError.
    """
    value = features.data
    with np.errstate(over="ignore"):
        rounded = value.astype(np.dtype(dtype)).astype(np.float32)
    if not np.isfinite(rounded).all():
        # activations lie row after row: the row of one is the last that begins at or before it
        place = int(np.flatnonzero(~np.isfinite(rounded))[0])
        row = int(np.searchsorted(features.indptr, place, side="right")) - 1
        where = f"feature {features.indices[place]} (row {row} of the shard)"
        if np.isfinite(value[place]):
            raise ShardError(
                f"activation {value[place]:g} of {where} does not fit {dtype}: set "
                "store.activation_dtype: float32"
            )
        raise ShardError(
            f"activation of {where} is {value[place]}: the SAE or the model overflows; set "
            "model.dtype: float32, or check the SAE's weights"
        )
    kept: Bool = rounded != 0
    if not kept.all():
        underflow = int(np.count_nonzero(value[~kept]))
        kept_features = SparseFeatures(features.indptr, features.indices, rounded).select(kept)
        return kept_features, underflow, _loss(value[kept], kept_features.data)
    return SparseFeatures(features.indptr, features.indices, rounded), 0, _loss(value, rounded)


def to_postings(features: SparseFeatures, d_sae: int) -> Postings:
    """Sort by (feature, row) in time linear in N + F + Z (scipy's csr -> csc is a counting sort)."""
    n_rows = len(features.indptr) - 1
    matrix = sparse.csr_matrix(
        (features.data, features.indices, features.indptr), shape=(n_rows, d_sae)
    ).tocsc()
    return cut_columns(matrix, 0, d_sae)


def cut_columns(columns: sparse.csc_matrix, first: int, last: int) -> Postings:
    """Features first .. last - 1 of a CSC [N, F]."""
    # of all pointers those of features that fired, and the end, counted from the first of the cut
    pointers = columns.indptr[first : last + 1].astype(np.int64)
    fired = np.flatnonzero(np.diff(pointers))
    place = slice(int(pointers[0]), int(pointers[-1]))
    return Postings(
        (fired + first).astype(np.uint32),
        np.append(pointers[fired], pointers[-1]) - pointers[0],
        columns.indices[place].astype(np.int64),
        columns.data[place],
    )


def to_features(postings: Postings, n_rows: int, d_sae: int) -> SparseFeatures:
    """The inverse of `to_postings`, for a shard of `n_rows` rows."""
    lengths = np.zeros(d_sae, dtype=np.int64)
    lengths[postings.features] = np.diff(postings.offsets)
    indptr: I64 = np.concatenate([[0], np.cumsum(lengths)])
    matrix = sparse.csc_matrix((postings.values, postings.rows, indptr), shape=(n_rows, d_sae)).tocsr()
    return SparseFeatures(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32), matrix.data)


def _loss(value: F32, rounded: F32) -> float:
    """Largest relative change by rounding; 0 where there is nothing."""
    if not len(value):
        return 0.0
    change: NDArray[np.float32] = np.abs((rounded - value) / value)
    return float(change.max())
