"""TopK: of each row the k largest pre-activations, as far as they are positive; AbsTopK: the k of largest
magnitude, with their signs. Ties go to the lowest feature.

TopK: Gao et al. 2024, arXiv:2406.04093; AbsTopK: arXiv:2510.00404. A full selection would cost as much as
a tenth of the matmul. Instead the k-th largest of the maxima of disjoint groups of columns bounds the k-th
value from below (k groups, so at least k values, reach it), and tightens as blocks of features go by: a few
more than k candidates pass that bound, and the exact selection is made among them.
"""

from __future__ import annotations

from typing import final

import numpy as np
from torch import Tensor

from pipeline.saes.rule import Limits
from pipeline.saes.weights import Weights
from schemas.values import F32, SparseFeatures

GROUP = 16
"""Columns of a group where there are enough: measured best of 8 to 64 at 4,608 and 24,576 features."""

SMALLEST = np.nextafter(np.float32(0), np.float32(1))


def topk(weights: Weights, k: int) -> TopKRule:
    """The rule for pre-activations x @ W_enc + b_enc."""
    return TopKRule(weights["b_enc"], k)


def abstopk(weights: Weights, k: int) -> TopKRule:
    """The same by magnitude."""
    return TopKRule(weights["b_enc"], k, signed=True)


@final
class TopKRule:
    """The k largest keys of product = x @ W_enc + bias in each row, where they are above 0."""

    def __init__(self, bias: Tensor, k: int, *, signed: bool = False) -> None:
        self.bias: Tensor | None = bias
        self.k = k
        self.signed = signed

    def limits(self) -> Limits:
        """See Rule."""
        return RunningBound(self.k)

    def limit_on_device(self, key: Tensor) -> Tensor:
        """See Rule. torch.topk leaves open which of equal values it takes, so only the k-th value is used."""
        maxima = group_maxima(key, self.k)
        if maxima.shape[1] < self.k:
            return maxima.new_full((len(key), 1), float(SMALLEST))
        return maxima.topk(self.k, dim=1, sorted=True).values[:, -1:].clamp(min=float(SMALLEST))

    def finish(self, candidates: SparseFeatures) -> SparseFeatures:
        """See Rule."""
        return trim(candidates, self.k)


class RunningBound:
    """Limits of TopK: at most each row's k-th largest key so far, and above 0; float32 [n, 1]."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._best: F32 | None = None

    def __call__(self, key: Tensor, features: slice) -> F32:  # noqa: ARG002 - only the values count
        """The bound after a further block of keys [n, f]."""
        maxima: F32 = group_maxima(key, self._k).numpy()
        # copies in any case: key is a buffer that the next block overwrites
        best = np.concatenate([maxima[:, :0] if self._best is None else self._best, maxima], axis=1)
        if best.shape[1] > self._k:
            best = np.sort(best, axis=1)[:, -self._k :]  # faster than a partition: so few columns
        self._best = best
        if best.shape[1] < self._k:
            return np.full((len(best), 1), SMALLEST)
        lowest: F32 = best.min(axis=1, keepdims=True)
        return np.maximum(lowest, SMALLEST, out=lowest)


def group_maxima(key: Tensor, k: int) -> Tensor:
    """Maxima of disjoint groups of columns of key [n, f], [n, groups]: 2 k groups or more where possible."""
    rows, width = key.shape
    size = max(1, min(GROUP, width // (2 * k)))
    groups = width // size
    # torch takes maxima on its own threads: 4 times as fast as numpy
    return key if size == 1 else key[:, : groups * size].view(rows, size, groups).amax(dim=1)


def trim(features: SparseFeatures, k: int) -> SparseFeatures:
    """The k largest magnitudes of each row (all, where there are fewer), equal ones by lowest index."""
    counts = np.diff(features.indptr)
    width = int(counts.max(initial=0))
    if width <= k:
        return features
    inside = np.arange(width) < counts[:, None]
    keys = np.full(inside.shape, -np.inf, dtype=np.float32)
    keys[inside] = np.abs(features.data)
    kth = np.partition(keys, width - k, axis=1)[:, width - k, None]
    above, tied = keys > kth, keys == kth
    room = k - above.sum(axis=1, keepdims=True)
    return features.only((above | (tied & (tied.cumsum(axis=1) <= room)))[inside])
