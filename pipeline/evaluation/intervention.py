"""Features changed in what an SAE reconstructs, while all else of it stays, the SAE's error among it.

Where a feature's activation f becomes f', the target at the hook becomes

    target + (f' - f) W_dec[feature] * scale,

with the scale of `output_scale`, 1 but for SAEs that normalise x. Nothing is decoded: where no activation
changes, the target stays as it is to the last bit.

n rows, k features that change, O width of the target.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from pipeline.evaluation.patching import output_scale
from pipeline.evaluation.steering import Change, Changes, Operation, changes_of
from pipeline.saes.encoding.encoder import Encoder
from schemas.errors import InputError
from schemas.values import F32

MOST = float(np.finfo(np.float32).max)


class Intervention:
    """Changes of an SAE's features, made wherever `patch` puts them in."""

    def __init__(self, encoder: Encoder, changes: Changes) -> None:
        """InputError for a feature that the SAE does not have, an unknown operation and a value that is not
        finite in float32.
        """
        self.encoder, self.changes = encoder, changes_of(changes)
        # of several changes of a feature, one after another, remains f' = factor * f + added
        by_feature: dict[int, tuple[float, float]] = {}
        for change in self.changes:
            _check(change, encoder.d_sae)
            factor, added = by_feature.get(change.feature, (1.0, 0.0))
            by_feature[change.feature] = {
                "set": (0.0, change.value),
                "add": (factor, added + change.value),
                "scale": (factor * change.value, added * change.value),
                "ablate": (0.0, 0.0),
            }[change.operation]
        self.features = np.array(list(by_feature), np.int32)
        """Those that change, int32 [k]."""
        with np.errstate(over="ignore"):
            self._factor, self._added = np.array(list(by_feature.values()), np.float32).T
        if not (np.isfinite(self._factor).all() and np.isfinite(self._added).all()):
            raise InputError("the values of the changes are too large together: give smaller ones")
        self._directions = encoder.directions(self.features)

    def activations(self, x: Tensor) -> F32:
        """Activations float32 [n, k] of the features that change, of x [n, width] as the SAE reads it."""
        features = self.encoder.encode(x)
        parts = (features.data, features.indices, features.indptr)
        dense = sparse.csr_matrix(parts, shape=(len(x), self.encoder.d_sae))[:, self.features].toarray()
        return np.asarray(dense, np.float32)

    def shift(self, x: Tensor) -> Tensor:
        """What is added to the target, float32 [n, O], where the SAE reads x [n, width]."""
        if (self._factor == 1).all():  # what is added does not depend on what fires
            added = np.broadcast_to(self._added, (len(x), len(self.features)))
        else:
            added = (self._factor - 1) * self.activations(x) + self._added
        moved = torch.from_numpy(np.ascontiguousarray(added)).to(self._directions.device) @ self._directions
        return moved * output_scale(self.encoder.metadata, x.to(moved.device, torch.float32))

    def stand_in(self, x: Tensor, target: Tensor) -> Tensor:
        """The target [n, O] with the changes, for `patch`."""
        return target + self.shift(x).to(target.device)

    def stand_in_of_mean(self, x: Tensor, target: Tensor) -> Tensor:
        """The same for rows of one context whose mean is what the SAE reads: all of them move alike."""
        return target + self.shift(x.mean(0, keepdim=True)).to(target.device)


def _check(change: Change, d_sae: int) -> None:
    """InputError for a change that cannot be made."""
    feature, operation, value = change
    if isinstance(feature, bool) or feature not in range(d_sae):
        raise InputError(f"feature {feature!r} is not in the SAE: its features are 0 to {d_sae - 1}")
    if operation not in get_args(Operation):
        raise InputError(f"operation {operation!r} is not known: give {', '.join(get_args(Operation))}")
    if not (isinstance(value, int | float) and abs(value) <= MOST):
        raise InputError(f"value {value!r} of feature {feature} is not a finite number of float32")
