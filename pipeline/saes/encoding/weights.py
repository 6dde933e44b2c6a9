"""From a reader's tensors to what an encoder computes with.

Names are SAELens': W_enc [D, F], W_dec [F, D], b_dec [D], of a transcoder W_dec [F, O], b_dec [O] and perhaps
W_skip [O, D], and the architecture's biases [F]; D d_model, F d_sae, O width_out. All float32.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.saes.encoding.architectures import ARCHITECTURES
from pipeline.saes.metadata import SaeMetadata
from schemas.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.saes.encoding.rule import Rule

Weights = dict[str, "Tensor"]


def finished(weights: Weights, metadata: SaeMetadata, spec: str) -> Weights:
    """The weights, none of them NaN or infinite, with decoder norms folded in where the SAE asks for that.

    After folding, activations @ W_dec + b_dec is the reconstruction whatever the SAE was trained with.
    """
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(
                f"{name} of SAE {spec} has NaN or infinity: the SAE's training failed, or the file is damaged"
            )
    if metadata.rescale_acts_by_decoder_norm:
        return fold_decoder_norms(weights, weights["W_dec"].norm(dim=1))
    return weights


def fold_decoder_norms(weights: Weights, norm: Tensor) -> Weights:
    """Activations times `norm` [F], the norms of W_dec's rows, which are divided by it where it is not 0."""
    # (a n) @ (W_dec / n) = a @ W_dec: the reconstruction stays, and what fires is decided by a n
    weights["W_enc"] = weights["W_enc"] * norm
    weights["b_enc"] = weights["b_enc"] * norm
    weights["W_dec"] = weights["W_dec"] / norm.where(norm > 0, 1)[:, None]
    return weights


def fold_input_scale(weights: Weights, scale_in: float, scale_out: float | None = None) -> Weights:
    """Weights for x as the model gives it, from those for x * scale_in; activations stay the same.

    `scale_out` is that of the target (default: `scale_in`).
    """
    scale_out = scale_in if scale_out is None else scale_out
    weights["W_enc"] = weights["W_enc"] * scale_in
    weights["W_dec"] = weights["W_dec"] / scale_out
    weights["b_dec"] = weights["b_dec"] / scale_out
    if "W_skip" in weights:
        weights["W_skip"] = weights["W_skip"] * (scale_in / scale_out)
    return weights


def rule_of(metadata: SaeMetadata, weights: Weights) -> Rule:
    """The architecture's rule."""
    module, _, name = ARCHITECTURES[metadata.architecture][0].partition(":")
    build: Callable[..., Rule] = getattr(importlib.import_module(module), name)
    return build(weights) if metadata.k is None else build(weights, metadata.k)
