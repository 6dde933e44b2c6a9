"""How well an SAE reconstructs its target: float64 sums over rows that arrive in batches of any size.

Explained variance is global, 1 - SSE / SST with SST about the mean row of all rows; a mean of batches' values
is another number. SST is merged by the pairwise formula of Chan, Golub and LeVeque (1979), so that a large
mean costs no precision.

Some models have rows a hundred times as long as the others (attention sinks: the first token, a newline). A
few of them can be nearly all of SST and of SSE, whatever the SAE does with the rest. So the same is reported
for the rows up to MASSIVE times the median norm of the first MEDIAN_ROWS rows, whatever batches they come in.

N rows, D d_model, O width of the target, F d_sae.
"""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from torch import Tensor

from pipeline.saes.encoding.encoder import Encoder
from pipeline.saes.metadata import SaeMetadata
from schemas.errors import InputError
from schemas.values import I64, Explained, SparseFeatures

FEW = 64
"""Fewer rows say nothing about an SAE."""

MASSIVE = 10.0
"""Times the median norm of a row, above which it is massive."""

MEDIAN_ROWS = 256
"""Rows that the median is of: the first, kept until they are that many."""

MASSIVE_SHARE = 0.05
"""Above this share massive rows are no exception, and an SAE is judged on all rows."""


@final
class Spread:
    """Errors and deviations from the mean row, over rows added so far."""

    def __init__(self) -> None:
        self.n = 0
        self.sse = 0.0
        """Sum of squared errors, over rows and elements."""
        self.sst = 0.0
        """Sum of squared deviations of the target from its mean row."""
        self._mean: Tensor | None = None

    def add(self, rows: Tensor, errors: Tensor) -> None:
        """Merge float64 rows [N, O] and their squared errors [N] into those before them."""
        if not len(rows):
            return
        # of these rows alone first: squares about their own mean lose no digits
        mean = rows.mean(dim=0)
        self.sst += float((rows - mean).square().sum())
        self.sse += float(errors.sum())
        if self._mean is None:
            self.n, self._mean = len(rows), mean
            return
        # Chan, Golub and LeVeque: SST of both = SST + SST + step^2 n m / (n + m)
        step, share = mean - self._mean, len(rows) / (self.n + len(rows))
        self.sst += float(step.square().sum()) * self.n * share
        self._mean = self._mean + step * share
        self.n += len(rows)

    @property
    def explained_variance(self) -> float:
        """1 - SSE / SST; NaN for a target that does not vary."""
        return 1 - self.sse / self.sst if self.sst else float("nan")


@final
class Reconstruction:
    """Sums over the rows added so far; of no row every mean is NaN."""

    def __init__(self, d_sae: int) -> None:
        self._all, self._rest = Spread(), Spread()
        self._first: list[tuple[Tensor, Tensor]] = []
        """Rows and errors of which the median is not taken yet."""
        self._longest: float | None = None
        self.active: I64 = np.zeros(d_sae, dtype=np.int64)
        """Rows in which each feature fired, int64 [F]."""
        self._width = 0
        self._cosines = 0.0
        self._rows_of_l0: I64 = np.zeros(1, dtype=np.int64)

    def add(self, target: Tensor, reconstruction: Tensor, features: SparseFeatures) -> None:
        """Take rows: target and reconstruction [N, O] of any float dtype, and the features that fired."""
        if not len(target):
            return
        wanted, given = target.double(), reconstruction.to(target.device, torch.float64)
        errors = (wanted - given).square().sum(dim=1)
        self._all.add(wanted, errors)
        self._add_to_rest(wanted, errors)
        self._width = wanted.shape[1]
        self._cosines += float(torch.cosine_similarity(wanted, given, dim=1).sum())
        self.active += np.bincount(features.indices, minlength=len(self.active))
        # rows by their L0; the histogram grows where a row has more features than any before
        fresh = np.bincount(np.diff(features.indptr), minlength=len(self._rows_of_l0))
        fresh[: len(self._rows_of_l0)] += self._rows_of_l0
        self._rows_of_l0 = fresh

    def _add_to_rest(self, rows: Tensor, errors: Tensor) -> None:
        """Add the rows that are not massive, once the median is known; those that wait for it are copied."""
        if self._longest is None:
            # a batch may hold the last of them and more: those after them are judged at once
            missing = MEDIAN_ROWS - sum(len(kept) for kept, _ in self._first)
            self._first.append((rows[:missing].clone(), errors[:missing].clone()))
            if len(rows) < missing:
                return
            self._add_buffered()
            rows, errors = rows[missing:], errors[missing:]
        self._add_ordinary(rows, errors)

    def _add_buffered(self) -> None:
        """Take the median of the rows that there are, and add them."""
        rows, errors = (torch.cat(part) for part in zip(*self._first, strict=True))
        self._longest = MASSIVE * float(torch.linalg.vector_norm(rows, dim=1).quantile(0.5))
        self._first.clear()
        self._add_ordinary(rows, errors)

    def _add_ordinary(self, rows: Tensor, errors: Tensor) -> None:
        assert self._longest is not None
        kept = torch.linalg.vector_norm(rows, dim=1) <= self._longest
        self._rest.add(rows[kept], errors[kept])

    @property
    def n(self) -> int:
        """Rows."""
        return self._all.n

    @property
    def sse(self) -> float:
        """Sum of squared errors, over rows and elements."""
        return self._all.sse

    @property
    def sst(self) -> float:
        """Sum of squared deviations of the target from its mean row."""
        return self._all.sst

    @property
    def rest(self) -> Spread:
        """The same sums over the rows that are not massive. No row may be added once this was read."""
        if self._longest is None and self._first:
            self._add_buffered()
        return self._rest

    @property
    def massive(self) -> int:
        """Rows above MASSIVE times the median norm."""
        return self.n - self.rest.n

    @property
    def explained(self) -> Explained:
        """Explained variance of all rows; and of the rest, where massive rows are few."""
        few = 0 < self.massive <= MASSIVE_SHARE * self.n
        return Explained(self.explained_variance, self.rest.explained_variance if few else None)

    @property
    def judged(self) -> float:
        """The one of the two that an SAE is judged by."""
        return self.explained.judged

    @property
    def explained_variance(self) -> float:
        """1 - SSE / SST; NaN for a target that does not vary."""
        return self._all.explained_variance

    @property
    def mse(self) -> float:
        """Mean squared error per element."""
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
        # the first L0 at which as many rows as the middle one's number have been counted
        cumulative = np.cumsum(self._rows_of_l0)
        middle = np.searchsorted(cumulative, [(self.n - 1) // 2 + 1, self.n // 2 + 1])
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
    given, width = at_hook_out.shape[1], metadata.width_out
    if given == width:
        return at_hook_out
    if not holds_target(metadata, given):
        raise InputError(
            f"{metadata.hook_name_out or metadata.hook_name} has vectors of width {given}, but the SAE "
            f"reconstructs {width}: give the model and the hook that it was trained on"
        )
    return at_hook_out.view(len(at_hook_out), given // width, width)[:, metadata.hook_head_index]


def holds_target(metadata: SaeMetadata, given: int) -> bool:
    """Whether vectors of the width `given` are what the SAE reconstructs, or hold it as one head of them."""
    head, width = metadata.hook_head_index, metadata.width_out
    return given == width or (head is not None and given % width == 0 and given > head * width)


def worse_than_mean(reconstruction: Reconstruction) -> str | None:
    """A sentence when the mean row would stand for the target better than the reconstruction does."""
    if not reconstruction.judged < 0:
        return None
    return (
        f"the reconstruction is worse than the mean row: explained variance {reconstruction.judged:.3g}, "
        f"L0 {reconstruction.l0_mean:.1f} on {reconstruction.n:,} rows; `latentlake check-sae` looks for the "
        "mistake (model, hook, normalisation, ...)"
    )
