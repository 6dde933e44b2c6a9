"""Rotary positions that depend on a context alone, where transformers lets the longest of a batch choose.

LongRoPE has two sets of frequencies, for contexts up to a border and for longer ones, and transformers takes
one for a whole batch, by its padded length. Here each context gets the set that it gets when it is run
alone. With dynamic NTK the frequencies beyond the border depend on the length itself, and on what was run
before: longer contexts are refused.

B contexts, T positions, C numbers of a position.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from schemas.errors import InputError

LONGROPE = "longrope"

Run = Callable[[Tensor, Tensor | None], object]
"""As `pipeline.models.hooks.hooked.Run`."""


def by_context(model: nn.Module, path: str) -> Callable[[Run], Run]:
    """Make the rotary modules of a model treat each context alone; the wrapper gives them the batch."""
    # experts with room for so many tokens drop some, and which ones is decided by all of a batch
    capacity = getattr(getattr(model, "config", None), "expert_capacity", None)
    if capacity is not None:
        raise InputError(
            f"model {path} has experts with room for {capacity} tokens of a batch, so a token's x depends "
            "on the other contexts: choose a model that routes each token independently"
        )
    modules, batch = _rotary_modules(model), _Batch()
    for module in modules:
        if LONGROPE in _kinds(module):
            _switch_by_context(module, batch)
    borders = [m.original_max_seq_len for m in modules if any("dynamic" in kind for kind in _kinds(m))]

    def wrap(run: Run) -> Run:
        def wrapped(given: Tensor, mask: Tensor | None) -> object:
            width = given.shape[1]
            batch.lengths = given.new_full((len(given),), width).long() if mask is None else mask.sum(1)
            if borders and width > min(borders):
                raise InputError(
                    f"a context of {width} tokens is longer than {min(borders)}, beyond which positions "
                    f"in model {path} (rope_type: dynamic) depend on what else is run: lower "
                    "tokens.context_size"
                )
            return run(given, mask)

        return wrapped

    return wrap if borders or batch.is_read else lambda run: run


def refuse_longrope(model: nn.Module, path: str, loader: str) -> None:
    """InputError for a loader that knows one set of frequencies alone."""
    if any(LONGROPE in _kinds(module) for module in _rotary_modules(model)):
        raise InputError(
            f"model {path} has different rotary frequencies in long contexts (rope_type: {LONGROPE}), "
            f"which model.loader: {loader} does not support: set model.loader: transformer_lens"
        )


class _Batch:
    """The batch that is run: `lengths` int64 [B], real tokens of each context; None before the first.

    `is_read`: whether a module reads it.
    """

    lengths: Tensor | None = None
    is_read = False


def _rotary_modules(model: nn.Module) -> list[Any]:
    """Those that rotary positions come from, of transformers and not of what wraps them."""
    return [module for module in model.modules() if "rope_type" in vars(module)]


def _kinds(module: Any) -> tuple[str, ...]:
    """The kinds of rotary positions of a module: one, or one by type of layer."""
    kinds = module.rope_type
    return tuple(map(str, kinds.values())) if isinstance(kinds, dict) else (str(kinds),)


def _switch_by_context(module: Any, batch: _Batch) -> None:
    """Let the module give [B, T, C], where a batch has contexts on both sides of the border."""
    own, batch.is_read = module.forward, True

    def forward(x: Tensor, position_ids: Tensor, *args: Any, **named: Any) -> object:
        kind, rope = module.rope_type, module.config.rope_parameters
        if isinstance(kind, dict):  # one by type of layer
            layer_type = args[0] if args else named.get("layer_type")
            kind, rope = kind.get(layer_type), rope[layer_type]
        # the longest context that has the short frequencies, where the layer has two sets
        border = int(rope["original_max_position_embeddings"]) if kind == LONGROPE else sys.maxsize
        positions, width = position_ids, position_ids.shape[-1]
        if batch.lengths is None or width <= border:
            return own(x, positions, *args, **named)
        is_long = (batch.lengths > border).to(x.device)
        if bool(is_long.all()):
            return own(x, positions, *args, **named)
        # own chooses by the width it sees: up to the border the short set, and zeros for the pads after it
        short = tree_map(
            lambda one: nn.functional.pad(one, (0, 0, 0, width - one.shape[1])),
            own(x, positions[:, :border], *args, **named),
        )
        if not bool(is_long.any()):
            return short
        both = own(x, positions, *args, **named)
        return tree_map(lambda long, one: torch.where(is_long[:, None, None], long, one), both, short)

    module.__dict__["forward"] = forward
