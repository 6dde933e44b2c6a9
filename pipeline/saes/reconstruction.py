"""How well an SAE reconstructs its target: float64 sums over rows that arrive in batches of any size.

Explained variance is global, 1 - SSE / SST with SST about the mean row of all rows; a mean of batches' values
is another number. SST is merged by the pairwise formula of Chan, Golub and LeVeque (1979), so that a large
mean costs no precision.

N rows, D d_model, O width of the target, F d_sae.
"""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor

from pipeline.saes.encoder import Encoder
from pipeline.saes.metadata import SaeMetadata
from schemas.errors import InputError
from schemas.values import I64, SparseFeatures

FEW = 64
"""Fewer rows tell nothing of an SAE."""


@final
class Reconstruction:
    """Sums over the rows added so far; of no row every mean is NaN."""

    def __init__(self, d_sae: int) -> None:
        self.n = 0
        self.sse = 0.0
        """Sum of squared errors, over rows and elements."""
        self.sst = 0.0
        """Sum of squared deviations of the target from its mean row."""
        self.active: I64 = np.zeros(d_sae, dtype=np.int64)
        """Rows in which each feature fired, int64 [F]."""
        self._width = 0
        self._mean: Tensor | None = None
        self._cosines = 0.0
        self._rows_of_l0: I64 = np.zeros(1, dtype=np.int64)

    def add(self, target: Tensor, reconstruction: Tensor, features: SparseFeatures) -> None:
        """Take rows: target and reconstruction [N, O] of any float dtype, and the features that fired."""
        if not len(target):
            return
        wanted, given = target.double(), reconstruction.to(target.device, torch.float64)
        self._add_moments(wanted)
        self.n += len(wanted)
        self._width = wanted.shape[1]
        self.sse += float((wanted - given).square().sum())
        self._cosines += float(torch.cosine_similarity(wanted, given, dim=1).sum())
        self.active += np.bincount(features.indices, minlength=len(self.active))
        self._add_l0(np.diff(features.indptr))

    def _add_moments(self, rows: Tensor) -> None:
        """Merge mean and SST of float64 rows [N, O] into those before them."""
        mean = rows.mean(dim=0)
        self.sst += float((rows - mean).square().sum())
        if self._mean is None:
            self._mean = mean
            return
        step, share = mean - self._mean, len(rows) / (self.n + len(rows))
        self.sst += float(step.square().sum()) * self.n * share
        self._mean = self._mean + step * share

    def _add_l0(self, l0: I64) -> None:
        """Count rows by the number of features that fire in them."""
        fresh = np.bincount(l0, minlength=len(self._rows_of_l0))
        fresh[: len(self._rows_of_l0)] += self._rows_of_l0
        self._rows_of_l0 = fresh

    @property
    def explained_variance(self) -> float:
        """1 - SSE / SST; NaN for a target that does not vary."""
        return 1 - self.sse / self.sst if self.sst else float("nan")

    @property
    def mse(self) -> float:
        """Mean squared error of an element."""
        return self.sse / (self.n * self._width) if self.n else float("nan")

    @property
    def cosine(self) -> float:
        """Mean over rows of the cosine between target and reconstruction; a row of zeros counts as 0."""
        return self._cosines / self.n if self.n else float("nan")

    @property
    def l0_mean(self) -> float:
        """Mean number of features that fire in a row."""
        return int(self.active.sum()) / self.n if self.n else float("nan")

    @property
    def l0_median(self) -> float:
        """Median number of features that fire in a row; of two middle rows the mean."""
        if not self.n:
            return float("nan")
        upto = np.cumsum(self._rows_of_l0)
        middle = np.searchsorted(upto, [(self.n - 1) // 2 + 1, self.n // 2 + 1])
        return float(middle.mean())

    @property
    def dead(self) -> int:
        """Features that fired in none of the rows."""
        return int((self.active == 0).sum())


def reconstruct(encoder: Encoder, x: Tensor, target: Tensor, into: Reconstruction) -> SparseFeatures:
    """Encode x [N, width], decode, and add the rows; gives the features.

    `target` [N, O] is what `target_of` says.
    """
    features = encoder.encode(x)
    into.add(target, encoder.decode(features, like=x), features)
    return features


def target_of(metadata: SaeMetadata, at_hook_out: Tensor) -> Tensor:
    """What the SAE is to reconstruct, [N, O], out of what the model has at `hook_name_out` or `hook_name`.

    A view of one head, or all. InputError for another width.
    """
    found, width = at_hook_out.shape[1], metadata.width_out
    if found == width:
        return at_hook_out
    if not holds_target(metadata, found):
        raise InputError(
            f"{metadata.hook_name_out or metadata.hook_name} gives vectors of {found}, the SAE reconstructs "
            f"{width}: give the model and the hook that it was trained on"
        )
    return at_hook_out.view(len(at_hook_out), found // width, width)[:, metadata.hook_head_index]


def holds_target(metadata: SaeMetadata, found: int) -> bool:
    """Whether vectors of the width `found` are what the SAE reconstructs, or hold it as one head of them."""
    head, width = metadata.hook_head_index, metadata.width_out
    return found == width or (head is not None and found % width == 0 and found > head * width)


def worse_than_mean(found: Reconstruction) -> str | None:
    """A sentence when the mean row would stand for the target better than the reconstruction does."""
    if not found.explained_variance < 0:
        return None
    return (
        f"the reconstruction is worse than the mean row: explained variance {found.explained_variance:.3g}, "
        f"L0 {found.l0_mean:.1f} on {found.n:,} rows; `latentlake check-sae` looks for the mistake "
        "(model, hook, normalisation, ...)"
    )
