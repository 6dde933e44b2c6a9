"""An architecture: which features fire, and how strongly, given x @ W_enc.

A rule never sees a dense [N, F] at once. For each block of the product it gives a limit, cheap to compute,
that every activation reaches; what reaches it are the candidates, a few more than fire; `finish` makes the
exact choice among the candidates of whole rows, on the host, so that every device chooses alike.

n rows of a block, f features of a block, F all features, k of a TopK.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from schemas.values import F32, I64, Bool, SparseFeatures

GROUP = 16
"""Columns of a group whose maximum is checked first: measured best of 8 to 64."""

FEW = 1 / 32
"""Up to this share of groups that may hold a candidate, only their columns are checked."""


class Keys(NamedTuple):
    """A block of what candidates are chosen by."""

    values: Tensor
    """float32 [n, f]."""
    maxima: F32
    """[n, g], of GROUP columns each: column c < g * GROUP is in group c % g."""
    features: slice
    """Which features the columns are."""

    @property
    def finite(self) -> bool:
        """Whether no value is NaN or infinite upwards."""
        rest = self.values[:, self.maxima.shape[1] * GROUP :]
        return bool(np.isfinite(self.maxima).all()) and bool(rest.isfinite().all())


def keys_of(product: Tensor, features: slice, *, signed: bool) -> Keys:
    """The keys of a block of the product [n, f]: themselves, or their magnitudes."""
    values = product.abs() if signed else product
    return Keys(values, group_maxima(values, GROUP).numpy(), features)


def group_maxima(values: Tensor, size: int) -> Tensor:
    """Maxima of groups of `size` columns of values [n, f], [n, f // size], as in Keys; a rest has none."""
    rows, width = values.shape
    groups = width // size
    # torch takes maxima on its own threads: 4 times as fast as numpy
    return values[:, : groups * size].reshape(rows, size, groups).amax(dim=1)


Limits = Callable[[Keys], F32]
"""Called for the blocks of some rows from left to right; gives what a candidate's key must reach, float32
[f], [n, 1] or [n, f]."""


class Rule(Protocol):
    """See the top of this file."""

    @property
    def bias(self) -> Tensor | None:
        """Added to the product first, float32 [F]; None when the rule adds its own to the candidates."""

    @property
    def signed(self) -> bool:
        """Whether negative values fire: the key of a product is then its magnitude, else the product."""

    def limits(self) -> Limits:
        """Limits for the blocks of the next rows, on the CPU."""

    def limit_on_device(self, key: Tensor) -> Tensor:
        """The limit of whole rows, computed where `key` [n, F] lies and without waiting for it."""

    def finish(self, candidates: SparseFeatures) -> SparseFeatures:
        """The activations among the candidates of whole rows; candidates hold values of product + bias."""


def candidates(product: Tensor, keys: Keys, limit: F32, mask: Bool) -> SparseFeatures:
    """What reaches the limit in a block of the product [n, f]; `mask` bool [n, f] is scratch."""
    rows, width = product.shape
    flat = _in_few_groups(keys, limit)
    if flat is None:
        flat = np.flatnonzero(np.greater_equal(keys.values.numpy(), limit, out=mask))
    # places in the flat block ascend, so a row's candidates lie between the row's two ends
    starts = np.arange(rows + 1, dtype=np.int64) * width
    indptr = np.searchsorted(flat, starts).astype(np.int64, copy=False)
    indices = (flat - np.repeat(starts[:-1] - keys.features.start, np.diff(indptr))).astype(np.int32)
    return SparseFeatures(indptr, indices, product.numpy().reshape(-1)[flat])


def _in_few_groups(keys: Keys, limit: F32) -> I64 | None:
    """Places of candidates in the flat block, ascending, by the groups' maxima; None: search everywhere."""
    # columns that are in no group, and limits of each value, leave nothing to compare maxima with
    (rows, width), groups = keys.values.shape, keys.maxima.shape[1]
    if not rows or groups * GROUP != width or (limit.ndim == 2 and limit.shape[1] > 1):
        return None
    # column c is in group c % g, so a limit [f] as [GROUP, g] has the limits of a group in one column
    by_group = limit.reshape(GROUP, groups).T if limit.ndim == 1 else None
    hits = np.flatnonzero(keys.maxima >= (limit if by_group is None else by_group.min(axis=1)))
    if len(hits) > FEW * keys.maxima.size:
        return None
    # of a group that may hold a candidate every column is compared: group, group + g, group + 2 g, ...
    row, group = np.divmod(hits, groups)
    flat = (row * width + group)[:, None] + np.arange(0, width, groups)
    reached = keys.values.numpy().reshape(-1)[flat] >= (limit[row] if by_group is None else by_group[group])
    return np.sort(flat[reached])


def hstack_csr(parts: list[SparseFeatures]) -> SparseFeatures:
    """The same rows of neighbouring blocks of features, from left to right, as one."""
    if len(parts) == 1:
        return parts[0]
    # a row of the result is its rows of the parts one after another: ends[r, n] is where part n's ends
    lengths = np.stack([np.diff(part.indptr) for part in parts], axis=1)
    ends = np.cumsum(lengths.reshape(-1)).reshape(lengths.shape)
    indices = np.empty(ends[-1, -1] if ends.size else 0, dtype=np.int32)
    data = np.empty(len(indices), dtype=np.float32)
    for n, part in enumerate(parts):
        # a part's row keeps its order, so one shift moves the whole row to its place
        shift = ends[:, n] - lengths[:, n] - part.indptr[:-1]
        place = np.arange(part.nnz) + np.repeat(shift, lengths[:, n])
        indices[place], data[place] = part.indices, part.data
    return SparseFeatures(np.concatenate([[0], ends[:, -1]]), indices, data)
