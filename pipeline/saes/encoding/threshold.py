"""Architectures whose features fire on their own: standard (ReLU), JumpReLU and gated.

All three say: with g = x @ W_enc, feature f has the value g * scale[f] + shift[f], and fires where that
value is above threshold[f]. So the limit is a floor for g, at or a rounding error below the true one; the
exact test is made on the few candidates alone, in the arithmetic of the reference implementation.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from pipeline.saes.encoding.rule import Limits
from pipeline.saes.encoding.weights import Weights
from schemas.values import F32, SparseFeatures

SMALLEST = 2.0**-149
"""The smallest float32 above 0."""

ROUNDING = 2.0**-22
"""Relative room left below a computed limit: four float32 rounding errors."""


def standard(weights: Weights) -> ThresholdRule:
    """ReLU: relu(g + b_enc)."""
    return ThresholdRule(weights["b_enc"], torch.zeros_like(weights["b_enc"]))


def jumprelu(weights: Weights) -> ThresholdRule:
    """JumpReLU: g + b_enc where that is above max(threshold, 0); equal to the threshold is off.

    Rajamanoharan et al. 2024, arXiv:2407.14435. BatchTopK SAEs are saved for inference in this form.
    """
    return ThresholdRule(weights["b_enc"], weights["threshold"].clamp(min=0))


def gated(weights: Weights) -> ThresholdRule:
    """Gated: g * exp(r_mag) + b_mag where that is positive and g + b_gate is positive too.

    Rajamanoharan et al. 2024, arXiv:2404.16014; SAELens' weight sharing W_mag = W_enc * exp(r_mag).
    """
    shift = weights["b_mag"]
    return ThresholdRule(shift, torch.zeros_like(shift), weights["r_mag"].exp(), weights["b_gate"])


@final
class ThresholdRule:
    """value = g * scale + shift, on where value > threshold >= 0; all float32 [F], scale None for ones."""

    bias: Tensor | None = None
    signed = False

    def __init__(
        self, shift: Tensor, threshold: Tensor, scale: Tensor | None = None, gate: Tensor | None = None
    ) -> None:
        """With `gate` a feature fires only where g + gate > 0, too."""
        # a floor below the true limit costs a few more candidates; one above it would lose activations
        limit = threshold.double() - shift.double()
        room = ROUNDING * (threshold.double().abs() + shift.double().abs())
        floor = ((limit - room) / (1 if scale is None else scale.double())).float()
        # 0 / 0: the value is exactly the threshold, whatever g is
        floor = floor.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        # without a positive shift only a positive g fires: 0, as features without weights give, does not
        floor = torch.where(shift <= 0, floor.clamp(min=SMALLEST), floor)
        if gate is not None:
            # g + gate > 0 and g > -gate are the same statement in floating point, so the floor can be exact.
            floor = torch.maximum(floor, torch.nextafter(-gate, torch.full_like(gate, torch.inf)))
        self._floor_on_device = floor
        self._floor: F32 = floor.cpu().numpy()
        self._shift: F32 = shift.cpu().numpy()
        self._threshold: F32 = threshold.cpu().numpy()
        self._scale: F32 | None = None if scale is None else scale.cpu().numpy()

    def limits(self) -> Limits:
        """See Rule."""
        floor = self._floor
        return lambda keys: floor[keys.features]

    def limit_on_device(self, key: Tensor) -> Tensor:  # noqa: ARG002
        """See Rule."""
        return self._floor_on_device

    def finish(self, candidates: SparseFeatures) -> SparseFeatures:
        """See Rule."""
        values, indices = candidates.data, candidates.indices
        # in float32 and in this order, as the reference does it: equal to the threshold is off
        if self._scale is not None:
            values = values * self._scale[indices]
        values = values + self._shift[indices]
        exact = SparseFeatures(candidates.indptr, indices, values)
        return exact.select(values > self._threshold[indices])
