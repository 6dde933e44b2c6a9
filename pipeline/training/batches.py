"""Rows in another order in every epoch, by a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """How long is trained: `epochs` times over all rows, `batch` of them in a step."""

    epochs: int
    batch: int = 128
    seed: int = 0


def batches(n: int, steps: Steps, advance: Callable[[int], None]) -> Iterator[Tensor]:
    """Numbers of the rows of each step, int64; `advance` is told of each epoch that is over."""
    generator = torch.Generator().manual_seed(steps.seed)
    for _ in range(steps.epochs):
        yield from torch.split(torch.randperm(n, generator=generator), steps.batch)
        advance(1)
