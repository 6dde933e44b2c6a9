"""Putting something else in place of x at some rows, while the rest of the model runs on.

N token rows of a batch, O width of the SAE's target.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.plans.reopen import Place
from pipeline.saes.encoding.normalization import scale_back
from pipeline.saes.metadata import SaeMetadata
from pipeline.saes.quality.reconstruction import target_of
from schemas.values import Bool

StandIn = Callable[[Tensor, Tensor], Tensor | float]
"""Of what the SAE reads and its target [n, O], in the rows concerned: what stands in for the target."""


def patch(
    metadata: SaeMetadata, place: Place, rows: Bool, stand_in: StandIn
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Functions by hook, for `Model.losses`, that replace the target in the rows marked in bool [N].

    Of an SAE of one attention head that head alone is replaced. A transcoder's x is seen on the way.
    """
    read, put = place
    seen: dict[str, Tensor] = {}

    def remember(x: Tensor) -> Tensor:
        seen["x"] = x.clone()
        return x

    def replaced(there: Tensor) -> Tensor:
        index = torch.from_numpy(np.flatnonzero(rows)).to(there.device)
        there = there.clone()  # the model may still hold it elsewhere, as the residual stream does
        target = target_of(metadata, there)  # a view of one head, or all
        old = target[index]
        x = old if read == put else seen["x"][index]
        new = stand_in(x, old)
        target[index] = new.to(target) if isinstance(new, Tensor) else new
        return there

    return {put: replaced} if read == put else {read: remember, put: replaced}


def output_scale(metadata: SaeMetadata, x: Tensor) -> Tensor:
    """What a row of W_dec times an activation is multiplied by where it is added to the target, [n, 1].

    `x` float32 [n, width] as the SAE reads it; 1 but for SAEs that scale back what they normalised.
    """
    # an SAE of one attention head normalises by the norm of its own part of x
    if x.shape[1] != metadata.d_model:
        x = x.view(len(x), -1, metadata.d_model)[:, metadata.hook_head_index]
    return scale_back(x, "none" if metadata.transcoder else metadata.normalize_activations)
