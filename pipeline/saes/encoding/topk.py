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

from pipeline.saes.encoding.rule import GROUP, Keys, Limits, group_maxima
from pipeline.saes.encoding.weights import Weights
from schemas.values import F32, SparseFeatures

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
        self.k, self.signed = k, signed

    def limits(self) -> Limits:
        """See Rule."""
        return RunningBound(self.k)

    def limit_on_device(self, key: Tensor) -> Tensor:
        """See Rule."""
        # torch.topk leaves open which of equal values it takes, so only the k-th value is used
        maxima = maxima_for(key, self.k)
        if maxima.shape[1] < self.k:
            return maxima.new_full((len(key), 1), float(SMALLEST))
        return maxima.topk(self.k, dim=1, sorted=True).values[:, -1:].clamp(min=float(SMALLEST))

    def finish(self, candidates: SparseFeatures) -> SparseFeatures:
        """See Rule."""
        counts = np.diff(candidates.indptr)
        width = int(counts.max(initial=0))
        if width <= self.k:
            return candidates
        # rows as a matrix, as wide as the longest: the empty places at their ends are below everything
        inside = np.arange(width) < counts[:, None]
        keys = np.full(inside.shape, -np.inf, dtype=np.float32)
        keys[inside] = np.abs(candidates.data)
        kth = np.partition(keys, width - self.k, axis=1)[:, width - self.k, None]
        # several may equal the k-th: columns ascend by feature, so the first of them fill the room left
        above, tied = keys > kth, keys == kth
        room = self.k - above.sum(axis=1, keepdims=True)
        return candidates.select((above | (tied & (tied.cumsum(axis=1) <= room)))[inside])


class RunningBound:
    """Limits of TopK: at most each row's k-th largest key so far, and above 0; float32 [n, 1]."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._best: F32 | None = None

    def __call__(self, keys: Keys) -> F32:
        """The bound after a further block."""
        maxima = (
            keys.maxima if keys.maxima.shape[1] >= 2 * self._k else maxima_for(keys.values, self._k).numpy()
        )
        # copies in any case: keys may be a buffer that the next block overwrites
        best = np.concatenate([maxima[:, :0] if self._best is None else self._best, maxima], axis=1)
        # k columns are enough: what is below k values already cannot be the k-th any more
        best.sort(axis=1)  # faster than a partition: so few columns
        self._best = best[:, -self._k :]
        if best.shape[1] < self._k:
            return np.full((len(best), 1), SMALLEST)
        return np.maximum(self._best[:, :1], SMALLEST)


def maxima_for(values: Tensor, k: int) -> Tensor:
    """Maxima of groups of columns of values [n, f], [n, g]; g at least 2 k where columns are enough."""
    size = max(1, min(GROUP, values.shape[1] // (2 * k)))
    return values if size == 1 else group_maxima(values, size)
