"""Selection on a GPU: nothing waits for the device until a result is asked for, best one batch later.

The device finds the candidates of each block (see pipeline/saes/rule.py) into buffers of fixed capacity,
packs counts, features and values into one tensor, and starts one copy of it into pinned memory. Only
`result` waits. When a block had more candidates than the buffers hold, its batch is run again with larger
ones.
Nothing here needs CUDA: on CPU tensors the same steps run without streams, which is how tests follow them.

n rows of a block, F features, C capacity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from pipeline.saes.rule import Rule
from schemas.values import I32, SparseFeatures

FIRST_CAPACITY = 256
"""Candidates a row that the buffers hold at first."""

Products = Callable[[Tensor], Iterator[Tensor]]
"""Blocks of x @ W_enc + bias, float32 [n, F], in the order of rows."""


class _Copy(NamedTuple):
    """Packed blocks on the host, there when `arrived` has passed."""

    packed: Tensor
    arrived: torch.cuda.Event | None


@final
class DeviceSelection:
    """Chooses what fires in products that lie on a device."""

    def __init__(self, rule: Rule, first_capacity: int = FIRST_CAPACITY) -> None:
        self._rule = rule
        self._per_row = first_capacity
        self._most = 0

    def submit(
        self, x: Tensor, products: Products, refuse_not_finite: Callable[[Tensor], None]
    ) -> PendingFeatures:
        """Begin to encode x [N, D]; `refuse_not_finite` looks closer at an x whose sum is not finite."""
        blocks, shapes = [x.sum().isfinite().to(torch.int32).view(1)], []
        for product in products(x):
            capacity = min(len(product) * self._per_row, product.numel())
            blocks.append(self._packed(product, capacity))
            shapes.append((len(product), capacity))
        copy = _to_host(torch.cat(blocks))

        def again() -> PendingFeatures:
            return self.submit(x, products, refuse_not_finite)

        return PendingFeatures(copy, shapes, self._rule, self._learn, lambda: refuse_not_finite(x), again)

    def _learn(self, per_row: int) -> None:
        """Fit the next buffers to the most candidates a row of a block so far, with half as many spare."""
        self._most = max(self._most, per_row)
        self._per_row = self._most * 3 // 2 + 16

    def _packed(self, product: Tensor, capacity: int) -> Tensor:
        """Candidates a row [n], then features [C], then values [C], as int32; what is not used is 0."""
        key = product.abs() if self._rule.signed else product
        mask = key >= self._rule.limit_on_device(key)
        flat = mask.view(-1).nonzero_static(size=capacity, fill_value=0)[:, 0]
        values = product.view(-1)[flat].view(torch.int32)
        features = (flat % product.shape[1]).to(torch.int32)
        return torch.cat([mask.sum(dim=1, dtype=torch.int32), features, values])


@final
class PendingFeatures:
    """Features on their way; see `pipeline.saes.encoder.Pending`."""

    def __init__(
        self,
        copy: _Copy,
        shapes: list[tuple[int, int]],
        rule: Rule,
        learn: Callable[[int], None],
        refuse_not_finite: Callable[[], None],
        again: Callable[[], PendingFeatures],
    ) -> None:
        self._copy, self._shapes, self._rule, self._learn = copy, shapes, rule, learn
        self._refuse_not_finite, self._again = refuse_not_finite, again

    def result(self) -> SparseFeatures:
        """Wait for the copy, and choose exactly among the candidates."""
        if self._copy.arrived is not None:
            self._copy.arrived.synchronize()
        packed = self._copy.packed.numpy()
        if not packed[0]:
            self._refuse_not_finite()
        starts = np.cumsum([1, *(rows + 2 * capacity for rows, capacity in self._shapes)])
        counts = [packed[start:][:rows] for start, (rows, _) in zip(starts, self._shapes, strict=False)]
        fits = [int(c.sum()) <= capacity for c, (_, capacity) in zip(counts, self._shapes, strict=True)]
        self._learn(max((-(-int(c.sum()) // len(c)) for c in counts), default=0))
        if not all(fits):
            return self._again().result()
        blocks = zip(counts, starts, self._shapes, strict=False)
        parts = [self._block(c, packed[start + rows :], capacity) for c, start, (rows, capacity) in blocks]
        return SparseFeatures.concatenate(parts)

    def _block(self, counts: I32, rest: I32, capacity: int) -> SparseFeatures:
        """The exact choice in one block: candidates a row [n], then features [C] and values [C]."""
        indptr = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        nnz = int(indptr[-1])
        values = rest[capacity:][:nnz].view(np.float32)
        return self._rule.finish(SparseFeatures(indptr, rest[:nnz].copy(), values.copy()))


def _to_host(tensor: Tensor) -> _Copy:
    """Start to copy into pinned memory."""
    if tensor.device.type == "cpu":
        return _Copy(tensor, None)
    packed = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    packed.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    arrived.record()
    return _Copy(packed, arrived)
