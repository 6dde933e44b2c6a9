"""Input normalisations of SAELens, as pure functions of x [N, d_model].

SAELens keeps mean and norm of the last x on the module; here they are computed again from x when a
reconstruction is scaled back, so that encode and decode may be called in any order and from any thread.
`expected_average_only_in` scales nothing at inference: SAELens folds the factor into the weights before
saving them.
"""

from __future__ import annotations

import torch
from torch import Tensor

LAYER_NORM_EPS = 1e-5


def normalize(x: Tensor, how: str) -> Tensor:
    """The normalised x [N, d_model]."""
    if how in ("none", "expected_average_only_in"):
        return x
    if how == "constant_norm_rescale":
        return x * norm_factor(x)
    centred = x - x.mean(dim=1, keepdim=True)
    return centred / (centred.std(dim=1, keepdim=True) + LAYER_NORM_EPS)


def denormalize(y: Tensor, like: Tensor, how: str) -> Tensor:
    """Undo `normalize` on a reconstruction y [N, d_model] of `like` [N, d_model], as SAELens does."""
    if how == "constant_norm_rescale":
        return y / norm_factor(like)
    std, mean = torch.std_mean(like, dim=1, keepdim=True)
    return y * std + mean


def scale_back(like: Tensor, how: str) -> Tensor:
    """What `denormalize` multiplies each row by, [N, 1], for x [N, d_model] that was normalised."""
    if how in ("none", "expected_average_only_in"):
        return torch.ones_like(like[:, :1])
    return 1 / norm_factor(like) if how == "constant_norm_rescale" else like.std(dim=1, keepdim=True)


def norm_factor(x: Tensor) -> Tensor:
    """What brings each row of x [N, d_model] to length sqrt(d_model), [N, 1]."""
    factor: Tensor = x.shape[1] ** 0.5 / torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return factor
