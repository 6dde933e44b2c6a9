"""What an SAE's reconstruction loses of the vectors that a lake holds: sums over rows, float64.

Explained variance and shrinkage are those of sae-lens 6.54 (`ExplainedVarianceCalculator` in evals.py,
`ShrinkageCalculator` in synthetic/evals.py), of x unchanged stored and in float64.

Shapes: N rows of a block, S features of the SAE, D entries of x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.store.derived.profile import Tokens
from pipeline.store.reading.shard_files import ShardFiles
from schemas.values import F32, F64

ENTRIES = 1 << 21
"""Entries of x that are decoded at once."""
LEAST_NORM = 1e-6
"""A shorter x has no shrinkage, as in sae-lens."""


class Reconstructed(NamedTuple):
    """Sums over rows, `total` [D] and `squares` of x minus its centre, so that a large mean costs nothing."""

    rows: int = 0
    error: float = 0.0
    """Of |x - x'|^2."""
    total: F64 = np.zeros(1)
    squares: float = 0.0
    ratios: float = 0.0
    """Of |x'| / |x|, over `longer` rows."""
    longer: int = 0

    def __add__(self, other: Any) -> Reconstructed:
        return Reconstructed(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def explained_variance(self) -> float:
        """1 - SSE / SST; NaN where x does not vary, or there is no row."""
        # squares about the centre, less what the distance of the mean from the centre makes of them
        variance = self.squares - float((self.total**2).sum()) / max(self.rows, 1)
        return 1 - self.error / variance if variance > 0 else float("nan")

    @property
    def shrinkage(self) -> float:
        """The mean of |x'| / |x|; 1 is none, NaN that there is no row."""
        return self.ratios / self.longer if self.longer else float("nan")


@dataclass(frozen=True)
class Decoder:
    """Decodes a shard: x' = activations @ W_dec + b_dec against x in the token shards."""

    tokens: Tokens
    weight: F32
    """W_dec, float32 [S, D]."""
    bias: F32
    """b_dec, float32 [D]."""
    centre: F32
    """About what x has as its mean, float32 [D]."""

    def sums_of_shard(self, shard: ShardFiles) -> Reconstructed:
        """The sums of one shard, over the rows that may hold activations."""
        tokens = self.tokens.read(shard, inputs=True)
        assert tokens.inputs is not None
        activations, rows = shard.read_csr(), np.flatnonzero(tokens.stored)
        step, sums = max(1, ENTRIES // len(self.bias)), Reconstructed()
        weight = self.weight.astype(np.float64)
        for low in range(0, len(rows), step):
            block = rows[low : low + step]
            x = tokens.inputs[block].astype(np.float64)
            reconstruction = activations[block] @ weight + self.bias
            # about the centre, so that the variance is no small difference of large sums
            norm, centred = np.linalg.norm(x, axis=1), x - self.centre
            longer = norm > LEAST_NORM
            sums += Reconstructed(
                rows=len(x),
                error=float(((x - reconstruction) ** 2).sum()),
                total=centred.sum(axis=0),
                squares=float((centred**2).sum()),
                ratios=float((np.linalg.norm(reconstruction[longer], axis=1) / norm[longer]).sum()),
                longer=int(longer.sum()),
            )
        return sums
