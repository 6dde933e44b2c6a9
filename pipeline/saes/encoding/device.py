"""Selection on a GPU: nothing waits for the device until a result is asked for, best one batch later.

The device finds the candidates of each block (see pipeline/saes/encoding/rule.py) into buffers of fixed
capacity, packs counts, features and values into one tensor, and starts one copy of it into pinned memory.
Only `result` waits. When a block had more candidates than the buffers hold, its batch is run again with
larger ones. Nothing here needs CUDA: on CPU tensors the same steps run without streams, which is how tests
follow them.

n rows of a block, F features, C capacity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from pipeline.saes.encoding.rule import Rule
from schemas.values import I32, SparseFeatures

FIRST_CAPACITY = 256
"""Candidates a row that the buffers hold at first."""

ENOUGH_ROWS = 64
"""Batches of fewer rows say nothing about the candidates to come."""

Products = Callable[[Tensor], Iterator[Tensor]]
"""Blocks of x @ W_enc + bias, float32 [n, F], in the order of rows."""

Explain = Callable[[Tensor], None]
"""Raises the error that names a row of x which is not finite, or whose products are not, if one is."""


class _Copy(NamedTuple):
    """Packed blocks on the host, there when `arrived` has passed."""

    packed: Tensor
    arrived: torch.cuda.Event | None


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
        fine, blocks, shapes = x.sum().isfinite(), [], []
        for product in products(x):
            capacity = min(len(product) * (per_row or self._per_row), product.numel())
            fine = fine & product.isfinite().all()
            blocks.append(self._packed(product, capacity))
            shapes.append((len(product), capacity))
        copy = _to_host(torch.cat([fine.to(torch.int32).view(1), *blocks]))
        return InFlightFeatures(self, x, products, explain, copy, shapes)

    def learn(self, candidates: int, rows: int) -> None:
        """Fit the next buffers to the most candidates a row of late, with half as many spare."""
        if rows >= ENOUGH_ROWS:
            self._most = max(candidates / rows, 0.9 * self._most)
            self._per_row = int(1.5 * self._most) + 16

    def _packed(self, product: Tensor, capacity: int) -> Tensor:
        """Candidates a row [n], then features [C], then values [C], as int32; what is not used is 0."""
        key = product.abs() if self.rule.signed else product
        mask = key >= self.rule.limit_on_device(key)
        flat = mask.view(-1).nonzero_static(size=capacity, fill_value=0)[:, 0]
        values = product.view(-1)[flat].view(torch.int32)
        features = (flat % product.shape[1]).to(torch.int32)
        return torch.cat([mask.sum(dim=1, dtype=torch.int32), features, values])


@final
class InFlightFeatures:
    """Features still being computed; see `pipeline.saes.encoding.encoder.Pending`."""

    def __init__(
        self,
        selection: DeviceSelection,
        x: Tensor,
        products: Products,
        explain: Explain,
        copy: _Copy,
        shapes: list[tuple[int, int]],
    ) -> None:
        """`shapes` are rows and capacity of each block."""
        self._selection, self._x, self._products, self._explain = selection, x, products, explain
        self._copy, self._shapes = copy, shapes

    def result(self) -> SparseFeatures:
        """Wait for the copy, and choose exactly among the candidates."""
        if self._copy.arrived is not None:
            self._copy.arrived.synchronize()
        packed = self._copy.packed.numpy()
        if not packed[0]:
            self._explain(self._x)
        starts = np.cumsum([1, *(rows + 2 * capacity for rows, capacity in self._shapes)])
        counts = [packed[start:][:rows] for start, (rows, _) in zip(starts, self._shapes, strict=False)]
        n_candidates = [int(c.sum(dtype=np.int64)) for c in counts]
        self._selection.learn(sum(n_candidates), len(self._x))
        if any(n > capacity for n, (_, capacity) in zip(n_candidates, self._shapes, strict=True)):
            return self._again(n_candidates).result()
        blocks = zip(counts, starts, self._shapes, strict=False)
        parts = [self._block(c, packed[start + rows :], capacity) for c, start, (rows, capacity) in blocks]
        return SparseFeatures.concatenate(parts)

    def _again(self, n_candidates: list[int]) -> InFlightFeatures:
        """The same batch with buffers that hold all candidates."""
        per_row = max(-(-n // rows) for n, (rows, _) in zip(n_candidates, self._shapes, strict=True))
        return self._selection.submit(self._x, self._products, self._explain, per_row)

    def _block(self, counts: I32, rest: I32, capacity: int) -> SparseFeatures:
        """The exact choice in one block: candidates a row [n], then features [C] and values [C]."""
        indptr = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        nnz = int(indptr[-1])
        values = rest[capacity:][:nnz].view(np.float32)
        return self._selection.rule.finish(SparseFeatures(indptr, rest[:nnz].copy(), values.copy()))


def _to_host(tensor: Tensor) -> _Copy:
    """Start to copy into pinned memory."""
    if tensor.device.type == "cpu":
        return _Copy(tensor, None)
    packed = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    packed.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return _Copy(packed, arrived)
