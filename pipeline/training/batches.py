"""Training: rows in another order in every epoch, by a seed, and Adam's steps on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

LEARNING_RATE = 1e-3

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Steps:
    """How long is trained: `epochs` times over all rows, `batch` of them in a step."""

    epochs: int
    batch: int = 128
    seed: int = 0


def batches(n: int, steps: Steps, advance: Callable[[int], None]) -> Iterator[Tensor]:
    """Numbers of the rows of each step, int64; `advance` is called with each epoch that is over."""
    generator = torch.Generator().manual_seed(steps.seed)
    for _ in range(steps.epochs):
        yield from torch.split(torch.randperm(n, generator=generator), steps.batch)
        advance(1)


def trained(
    module: M, n: int, steps: Steps, advance: Callable[[int], None], loss_of: Callable[[Tensor], Tensor]
) -> M:
    """The module after Adam's steps on `loss_of` the numbers of some rows, of `n`."""
    optimizer = torch.optim.Adam(module.parameters(), lr=LEARNING_RATE)
    for rows in batches(n, steps, advance):
        loss = loss_of(rows)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return module.eval()
