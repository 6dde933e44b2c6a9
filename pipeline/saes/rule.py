"""An architecture: which features fire, and how strongly, given x @ W_enc.

A rule never sees a dense [N, F] at once. For each block of the product it gives a limit, cheap to compute,
that every activation reaches; what reaches it are the candidates, a few more than fire; `finish` makes the
exact choice among the candidates of whole rows, on the host, so that every device chooses alike.

n rows of a block, f features of a block, F all features, k of a TopK.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from torch import Tensor

from schemas.values import F32, Bool, SparseFeatures

Limits = Callable[[Tensor, slice], F32]
"""Called for the blocks of some rows from left to right, with a block's keys float32 [n, f] and the features
that it holds; gives what a candidate's key must reach, float32 [f], [n, 1] or [n, f]."""


class Rule(Protocol):
    """See the top of this file."""

    @property
    def bias(self) -> Tensor | None:
        """Added to the product first, float32 [F]; None when the rule adds its own to the candidates."""

    @property
    def signed(self) -> bool:
        """Whether negative values fire: the key of a product is then its magnitude, else the product."""

    def limits(self) -> Limits:
        """Limits for the blocks of the next rows, on the CPU."""

    def limit_on_device(self, key: Tensor) -> Tensor:
        """The limit of whole rows, computed where `key` [n, F] lies and without waiting for it."""

    def finish(self, candidates: SparseFeatures) -> SparseFeatures:
        """The activations among the candidates of whole rows; candidates hold values of product + bias."""


def candidates(product: Tensor, key: Tensor, limit: F32, first: int, mask: Bool) -> SparseFeatures:
    """What reaches the limit in a block [n, f] of features from `first` on; `mask` bool [n, f] is scratch."""
    rows, width = product.shape
    np.greater_equal(key.numpy(), limit, out=mask)
    flat = np.flatnonzero(mask)
    starts = np.arange(rows + 1, dtype=np.int64) * width
    indptr = np.searchsorted(flat, starts).astype(np.int64, copy=False)
    indices = (flat - np.repeat(starts[:-1] - first, np.diff(indptr))).astype(np.int32)
    return SparseFeatures(indptr, indices, product.numpy().reshape(-1)[flat])


def beside(parts: list[SparseFeatures]) -> SparseFeatures:
    """The same rows of neighbouring blocks of features, from left to right, as one."""
    if len(parts) == 1:
        return parts[0]
    lengths = np.stack([np.diff(part.indptr) for part in parts], axis=1)
    ends = np.cumsum(lengths.reshape(-1)).reshape(lengths.shape)
    indices = np.empty(ends[-1, -1] if ends.size else 0, dtype=np.int32)
    data = np.empty(len(indices), dtype=np.float32)
    for n, part in enumerate(parts):
        shift = ends[:, n] - lengths[:, n] - part.indptr[:-1]
        place = np.arange(part.nnz) + np.repeat(shift, lengths[:, n])
        indices[place], data[place] = part.indices, part.data
    return SparseFeatures(np.concatenate([[0], ends[:, -1]]), indices, data)
