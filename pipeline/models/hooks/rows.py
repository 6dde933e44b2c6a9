"""X of the real tokens in what a model gives at a hook, read or replaced.

B contexts, T positions, N real tokens, D width of x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from schemas.errors import InputError

Replace = Callable[[Tensor], Tensor]
"""x float32 [N, D] -> what stands in for it, [N, D]."""


def rows_of(output: object, shape: torch.Size, rows: Tensor, hook: str) -> Tensor:
    """X of the real tokens, a new float32 [N, D], from an output [B, T, ...] (of a tuple: its first)."""
    x = _tensor_of(output, shape, hook)
    # index_select copies, so that later layers may work in place on what the hook saw.
    return x.detach().flatten(0, 1).flatten(1).index_select(0, rows).float()


def put_rows(output: object, shape: torch.Size, rows: Tensor, hook: str, replace: Replace) -> object:
    """The output with `replace` applied to x of the real tokens; the rest as it is."""
    x = _tensor_of(output, shape, hook)
    old = rows_of(x, shape, rows, hook)
    new = replace(old)
    assert new.shape == old.shape, f"{hook}: {list(new.shape)} stands in for {list(old.shape)}"
    flat = x.detach().flatten(0, 1).flatten(1)
    put = flat.index_copy(0, rows, new.to(flat.dtype)).view(x.shape)
    if not isinstance(output, tuple):
        return put
    make: Any = getattr(output, "_make", type(output))  # a named tuple stays one
    return make((put, *output[1:]))


def _tensor_of(output: object, shape: torch.Size, hook: str) -> Tensor:
    """The tensor [B, T, ...] in what a hook gave."""
    x = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(x, Tensor) or x.ndim < 3 or x.shape[:2] != shape:
        given = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            f"hook {hook} returns {given}, not one vector for each of the {list(shape)} tokens: choose "
            "another"
        )
    return x
