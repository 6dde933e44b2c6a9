"""What a site reads of a batch: x of the rows that it stores, or one vector for each context.

Importing this does not import torch. Legend: N token rows of a batch, C its contexts, n rows that are stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.models.device import to_device
from schemas.values import I64, Bool, TokenShard

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RowsRead:
    """Of a batch: `stored` bool [N]; `averaged` bool [N] as `TokenShard` has it; `lengths` int64 [C]."""

    stored: Bool
    averaged: Bool | None
    lengths: I64

    @classmethod
    def of(cls, shard: TokenShard, rows: slice, lengths: I64) -> RowsRead:
        """Of some rows of a shard as the site counts it, which are contexts of these lengths."""
        averaged = None if shard.averaged is None else shard.averaged[rows]
        return cls(shard.stored[rows], averaged, lengths)

    def vectors(self, x: torch.Tensor) -> torch.Tensor:
        """What the SAE reads, [n, width], of x [N, width]; nothing waits for the device.

        Means are summed in float32 in the order of a context's rows, so they depend on that context alone.
        """
        if self.averaged is None:
            return take_rows(x, self.stored)
        import torch

        # lengths are counted on the host, from masks that lie there: the device is not waited for
        starts = np.cumsum(self.lengths) - self.lengths
        counts = np.add.reduceat(self.averaged, starts, dtype=np.int64)
        lengths = to_device(counts[counts > 0], x.device)
        return torch.segment_reduce(take_rows(x, self.averaged), "mean", lengths=lengths, unsafe=True)


def take_rows(x: torch.Tensor, rows: Bool) -> torch.Tensor:
    """The rows of x marked in bool [N]; nothing waits for the device."""
    if rows.all():
        return x
    return x.index_select(0, to_device(rows.nonzero()[0], x.device))
