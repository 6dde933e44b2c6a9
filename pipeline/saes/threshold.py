"""Architectures whose features fire on their own: standard (ReLU), JumpReLU and gated.

All three say: with g = x @ W_enc, feature f has the value g * scale[f] + bias[f], and fires where that value
is above threshold[f]. So a block needs one sweep, g > floor[f], with a floor at or a rounding error below the
true limit; the exact test is made on the few candidates alone, in the arithmetic of the reference
implementation.
"""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.saes.encoder import Weights
from schemas.values import F32, Bool, SparseFeatures

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
    rule = ThresholdRule(weights["b_mag"], torch.zeros_like(weights["b_mag"]), weights["r_mag"].exp())
    # g + b_gate > 0 and g > -b_gate are the same statement in floating point, so the gate needs no second
    # test.
    rule.floor = torch.maximum(rule.floor, -weights["b_gate"])
    return rule


@final
class ThresholdRule:
    """value = g * scale + bias, on where value > threshold >= 0; all float32 [F], scale None for ones."""

    bias: Tensor | None = None

    def __init__(self, shift: Tensor, threshold: Tensor, scale: Tensor | None = None) -> None:
        self.shift, self.threshold, self.scale = shift, threshold, scale
        limit = threshold.double() - shift.double()
        room = ROUNDING * (threshold.double().abs() + shift.double().abs())
        self.floor = ((limit - room) / (1 if scale is None else scale.double())).float()

    def select(self, product: Tensor, mask: Bool) -> SparseFeatures:
        """See Rule."""
        rows, n_features = product.shape
        np.greater(product.numpy(), self.floor.numpy(), out=mask)
        flat = np.flatnonzero(mask)
        indptr = row_pointers(flat, rows, n_features)
        indices = columns(flat, indptr, n_features)
        values = product.numpy().reshape(-1)[flat]
        if self.scale is not None:
            values *= self.scale.numpy()[indices]
        values += self.shift.numpy()[indices]
        return SparseFeatures(indptr, indices, values).only(values > self.threshold.numpy()[indices])

    def select_on_device(self, product: Tensor) -> SparseFeatures:
        """See Rule."""
        rows, indices = (product > self.floor).nonzero(as_tuple=True)
        values = product[rows, indices]
        if self.scale is not None:
            values = values * self.scale[indices]
        values = values + self.shift[indices]
        keep = values > self.threshold[indices]
        return from_device(rows[keep], indices[keep], values[keep], len(product))


def row_pointers(flat: NDArray[np.int64], rows: int, width: int) -> NDArray[np.int64]:
    """CSR pointers int64 [rows + 1] of ascending flat positions in a [rows, width] array."""
    return np.searchsorted(flat, np.arange(rows + 1, dtype=np.int64) * width).astype(np.int64, copy=False)


def columns(flat: NDArray[np.int64], indptr: NDArray[np.int64], width: int) -> NDArray[np.int32]:
    """Column of each flat position."""
    starts = np.arange(len(indptr) - 1, dtype=np.int64) * width
    return (flat - np.repeat(starts, np.diff(indptr))).astype(np.int32)


def from_device(rows: Tensor, indices: Tensor, values: Tensor, n_rows: int) -> SparseFeatures:
    """Bring row, feature and value of each activation, in CSR order, to the host."""
    indptr = np.zeros(n_rows + 1, dtype=np.int64)
    np.cumsum(torch.bincount(rows, minlength=n_rows).cpu().numpy(), out=indptr[1:])
    data: F32 = values.cpu().numpy()
    return SparseFeatures(indptr, indices.to(torch.int32).cpu().numpy(), data)
