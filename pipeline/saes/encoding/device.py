"""Selection on a GPU: nothing waits for the device until a result is read, best one batch later.

The device finds the candidates of each block (see pipeline/saes/encoding/rule.py) into buffers of fixed
capacity, packs counts, features and values into one tensor, and starts one copy of it into pinned memory.
Only `result` waits. When a block had more candidates than the buffers hold, its batch is run again with
larger ones. Nothing here needs CUDA: on CPU tensors the same steps run without streams, which is how tests
follow them.

n rows of a block, F features, C capacity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from pipeline.saes.encoding.rule import Rule
from schemas.values import SparseFeatures

FIRST_CAPACITY = 256
"""Candidates a row that the buffers hold at first."""

ENOUGH_ROWS = 64
"""Batches of fewer rows say nothing about the candidates to come."""

Products = Callable[[Tensor], Iterator[Tensor]]
"""Blocks of x @ W_enc + bias, float32 [n, F], in the order of rows."""

Explain = Callable[[Tensor], None]
"""Raises the error that names a row of x which is not finite, or whose products are not, if one is."""


@final
class DeviceSelection:
    """Chooses what fires in products that lie on a device."""

    def __init__(self, rule: Rule, first_capacity: int = FIRST_CAPACITY) -> None:
        self.rule = rule
        self._per_row = first_capacity
        self._most = 0.0

    def submit(
        self, x: Tensor, products: Products, explain: Explain, per_row: int | None = None
    ) -> InFlightFeatures:
        """Begin to encode x [N, D], with buffers of `per_row` candidates a row (default: what was learnt)."""
        # whether all is finite travels with the results: to ask now would wait for the device
        fine, blocks, shapes = x.sum().isfinite(), [], []
        for product in products(x):
            capacity = min(len(product) * (per_row or self._per_row), product.numel())
            fine = fine & product.isfinite().all()
            blocks.append(self._packed(product, capacity))
            shapes.append((len(product), capacity))
        packed, arrived = torch.cat([fine.to(torch.int32).view(1), *blocks]), None
        if packed.device.type != "cpu":
            # pinned memory: only into that is a copy asynchronous
            on_host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
            packed = on_host.copy_(packed, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        return InFlightFeatures(self, x, products, explain, packed, arrived, shapes)

    def learn(self, candidates: int, rows: int) -> None:
        """Fit the next buffers to the most candidates a row of late, with half as many spare."""
        if rows >= ENOUGH_ROWS:
            self._most = max(candidates / rows, 0.9 * self._most)
            self._per_row = int(1.5 * self._most) + 16

    def _packed(self, product: Tensor, capacity: int) -> Tensor:
        """Candidates a row [n], then features [C], then values [C], as int32; what is not used is 0."""
        key = product.abs() if self.rule.signed else product
        mask = key >= self.rule.limit_on_device(key)
        # the size must be given, for nonzero waits for the device to learn how many there are
        flat = mask.view(-1).nonzero_static(size=capacity, fill_value=0)[:, 0]
        # the bits of float32 as int32, so that one tensor, and one copy, holds everything
        values = product.view(-1)[flat].view(torch.int32)
        features = (flat % product.shape[1]).to(torch.int32)
        return torch.cat([mask.sum(dim=1, dtype=torch.int32), features, values])


@final
@dataclass(frozen=True)
class InFlightFeatures:
    """Features still being computed; see `pipeline.saes.encoding.encoder.Pending`."""

    selection: DeviceSelection
    x: Tensor
    products: Products
    explain: Explain
    packed: Tensor
    """All blocks on the host, there when `arrived` has passed."""
    arrived: torch.cuda.Event | None
    shapes: list[tuple[int, int]]
    """Rows and capacity of each block."""

    def result(self) -> SparseFeatures:
        """Wait for the copy, and choose exactly among the candidates."""
        if self.arrived is not None:
            self.arrived.synchronize()
        packed = self.packed.numpy()
        if not packed[0]:
            self.explain(self.x)
        # after the flag each block takes its n counts, C features and C values
        starts = np.cumsum([1, *(rows + 2 * capacity for rows, capacity in self.shapes)])
        counts = [packed[start:][:rows] for start, (rows, _) in zip(starts, self.shapes, strict=False)]
        n_candidates = [int(c.sum(dtype=np.int64)) for c in counts]
        self.selection.learn(sum(n_candidates), len(self.x))
        if any(n > capacity for n, (_, capacity) in zip(n_candidates, self.shapes, strict=True)):
            # counts are right where buffers were too small: so large ones will do for certain
            per_row = max(-(-n // rows) for n, (rows, _) in zip(n_candidates, self.shapes, strict=True))
            return self.selection.submit(self.x, self.products, self.explain, per_row).result()
        parts = []
        for count, start, (rows, capacity) in zip(counts, starts, self.shapes, strict=False):
            indptr = np.concatenate([[0], np.cumsum(count, dtype=np.int64)])
            rest, nnz = packed[start + rows :], int(indptr[-1])
            # copies: views would keep the whole pinned buffer alive
            values = rest[capacity:][:nnz].view(np.float32).copy()
            parts.append(self.selection.rule.finish(SparseFeatures(indptr, rest[:nnz].copy(), values)))
        return SparseFeatures.concatenate(parts)
