"""A rule alone, on a product that the test gives: as the CPU selects, and as a GPU would."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.saes.encoding.device import DeviceSelection
from pipeline.saes.encoding.rule import Rule, candidates, hstack_csr, keys_of
from schemas.values import SparseFeatures

Dense = np.ndarray[Any, np.dtype[np.float32]]


def select(rule: Rule, product: Dense, block: int | None = None) -> SparseFeatures:
    """In blocks of `block` features, from left to right."""
    limits, parts = rule.limits(), []
    for first in range(0, product.shape[1], block or product.shape[1]):
        features = slice(first, min(first + (block or product.shape[1]), product.shape[1]))
        part = torch.from_numpy(np.ascontiguousarray(product[:, features]))
        keys = keys_of(part, features, signed=rule.signed)
        parts.append(candidates(part, keys, limits(keys), np.empty(part.shape, dtype=np.bool_)))
    return rule.finish(hstack_csr(parts))


def select_on_device(rule: Rule, product: Dense, capacity: int = 256) -> SparseFeatures:
    """With buffers of `capacity` candidates a row at first."""
    selection = DeviceSelection(rule, capacity)
    return selection.submit(torch.from_numpy(product), lambda x: iter([x]), lambda x: None).result()
