"""TopK: of each row the k largest pre-activations, as far as they are positive; ties go to the lowest
feature.

Gao et al. 2024, arXiv:2406.04093. A full selection would cost as much as a tenth of the matmul. Instead the
k-th largest of the maxima of disjoint groups of columns bounds the k-th value from below (k groups, so at
least k values, reach it): a few more than k candidates pass that bound, and the exact selection is made among
them.
"""

from __future__ import annotations

from typing import final

import numpy as np
from torch import Tensor

from pipeline.saes.encoder import Weights
from pipeline.saes.threshold import columns, from_device, row_pointers
from schemas.values import F32, Bool, SparseFeatures

GROUP = 16
"""Columns of a group: measured best of 8 to 64 at 4,608 and 24,576 features with k 32."""

SMALLEST = np.nextafter(np.float32(0), np.float32(1))


def topk(weights: Weights, k: int) -> TopKRule:
    """The rule for pre-activations x @ W_enc + b_enc."""
    return TopKRule(weights["b_enc"], k)


@final
class TopKRule:
    """The k largest of product = x @ W_enc + bias in each row, where positive; all of them when k > F."""

    def __init__(self, bias: Tensor, k: int) -> None:
        self.bias: Tensor | None = bias
        self.k = k

    def select(self, product: Tensor, mask: Bool) -> SparseFeatures:
        """See Rule."""
        dense: F32 = product.numpy()
        rows, n_features = dense.shape
        np.greater_equal(dense, lower_bound(product, self.k)[:, None], out=mask)
        flat = np.flatnonzero(mask)
        indptr = row_pointers(flat, rows, n_features)
        candidates = SparseFeatures(indptr, columns(flat, indptr, n_features), dense.reshape(-1)[flat])
        return trim(candidates, self.k)

    def select_on_device(self, product: Tensor) -> SparseFeatures:
        """See Rule. torch.topk leaves open which of equal values it takes, so only the k-th value is used."""
        if self.k >= product.shape[1]:
            keep = product > 0
        else:
            kth = product.topk(self.k, dim=1).values[:, -1:]
            above, tied = product > kth, product == kth
            room = self.k - above.sum(dim=1, keepdim=True)
            keep = (above | (tied & (tied.cumsum(dim=1) <= room))) & (product > 0)
        rows, indices = keep.nonzero(as_tuple=True)
        return from_device(rows, indices, product[rows, indices], len(product))


def lower_bound(product: Tensor, k: int) -> F32:
    """A positive number per row, float32 [n], at most the row's k-th largest value where that is positive."""
    rows, n_features = product.shape
    groups = n_features // GROUP
    if groups < k:
        return np.full(rows, SMALLEST)
    # torch takes maxima on its own threads: 4 times as fast as numpy, and the rest of a selection is numpy's
    maxima: F32 = product[:, : groups * GROUP].view(rows, GROUP, groups).amax(dim=1).numpy()
    kth: F32 = np.partition(maxima, groups - k, axis=1)[:, groups - k]
    return np.maximum(kth, SMALLEST)


def trim(features: SparseFeatures, k: int) -> SparseFeatures:
    """The k largest of each row (all, where there are fewer), equal values by lowest index."""
    counts = np.diff(features.indptr)
    width = int(counts.max(initial=0))
    if width <= k:
        return features
    inside = np.arange(width) < counts[:, None]
    values = np.full(inside.shape, -np.inf, dtype=np.float32)
    values[inside] = features.data
    kth = np.partition(values, width - k, axis=1)[:, width - k, None]
    above, tied = values > kth, values == kth
    room = k - above.sum(axis=1, keepdims=True)
    return features.only((above | (tied & (tied.cumsum(axis=1) <= room)))[inside])
