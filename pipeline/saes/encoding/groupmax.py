"""GroupMax: features in k groups of neighbours; of each group the largest pre-activation fires, if positive.

sparsify's `activation: groupmax`. Of equal values the lowest feature fires.
"""

from __future__ import annotations

from typing import final

import numpy as np
from torch import Tensor

from pipeline.saes.encoding.rule import Keys, Limits
from pipeline.saes.encoding.topk import SMALLEST
from pipeline.saes.encoding.weights import Weights
from schemas.errors import InputError
from schemas.values import F32, SparseFeatures


def groupmax(weights: Weights, k: int) -> GroupMaxRule:
    """The rule for k groups of pre-activations x @ W_enc + b_enc."""
    return GroupMaxRule(weights["b_enc"], k)


@final
class GroupMaxRule:
    """One feature of each of the k groups."""

    signed = False

    def __init__(self, bias: Tensor, k: int) -> None:
        if len(bias) % k:
            raise InputError(
                f"a groupmax SAE of {len(bias)} features cannot have k {k}: all groups have the same size"
            )
        self.bias: Tensor | None = bias
        self.size = len(bias) // k

    def limits(self) -> Limits:
        """See Rule. A group that lies in two blocks has two limits, each of them reached by what fires."""

        def limits(keys: Keys) -> F32:
            # a block need not begin with a group: reduceat cuts where the number of the group changes
            group = np.arange(keys.features.start, keys.features.stop) // self.size
            starts = np.flatnonzero(np.diff(group, prepend=-1))
            maxima = np.maximum.reduceat(keys.values.numpy(), starts, axis=1)
            widened: F32 = np.repeat(maxima, np.diff(np.append(starts, len(group))), axis=1)
            return np.maximum(widened, SMALLEST, out=widened)

        return limits

    def limit_on_device(self, key: Tensor) -> Tensor:
        """See Rule."""
        maxima = key.view(len(key), -1, self.size).amax(dim=2)
        return maxima.repeat_interleave(self.size, dim=1, output_size=key.shape[1]).clamp(min=float(SMALLEST))

    def finish(self, candidates: SparseFeatures) -> SparseFeatures:
        """See Rule."""
        rows = np.repeat(np.arange(len(candidates.indptr) - 1), np.diff(candidates.indptr))
        group = candidates.indices // self.size
        # by row and group, in these the largest first and of equal ones the lowest feature
        order = np.lexsort((candidates.indices, -candidates.data, group, rows))
        first = np.ones(len(order), dtype=np.bool_)
        first[1:] = (np.diff(rows[order]) != 0) | (np.diff(group[order]) != 0)
        # a mask, since candidates stay in the order in which they stand
        kept = np.zeros(len(order), dtype=np.bool_)
        kept[order[first]] = True
        return candidates.select(kept)
