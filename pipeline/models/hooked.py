"""One forward pass over a batch of contexts: x is taken at each hook, and the pass ends behind the last one.

B contexts, T positions, N real tokens, D width of x.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import NoReturn, final

import numpy as np
import torch
from torch import Tensor

from schemas.errors import InputError
from schemas.values import TokenBatch

Take = Callable[[object], None]
"""Receives what a module gave at a hook."""

Attach = Callable[[str, Take], Callable[[], None]]
"""Call the Take at the hook of this name from now on, until the function returned is called."""

Run = Callable[[Tensor, Tensor | None], object]
"""Forward token ids int64 [B, T] with an attention mask int64 [B, T], or None when nothing is padded."""

PROBE = (2, 7)
"""Contexts and tokens run once when a model is loaded; an odd shape, so that [B, heads, ...] is not
mistaken for it."""


class _AllTaken(Exception):  # noqa: N818 - it carries no error
    """Ends a forward pass: nothing behind this point is wanted."""


@final
class HookedModel:
    """A loaded model and the hooks to read; see `pipeline.models.Model`."""

    def __init__(
        self, hooks: list[str], attach: Attach, run: Run, device: torch.device, max_context: int | None
    ) -> None:
        self.hooks, self.device, self.max_context = list(dict.fromkeys(hooks)), device, max_context
        self._attach, self._run = attach, run
        probe = self.forward(TokenBatch(np.zeros(PROBE, dtype=np.int64), np.full(PROBE[0], PROBE[1])))
        self.widths = {hook: x.shape[1] for hook, x in probe.items()}

    def forward(self, batch: TokenBatch) -> dict[str, Tensor]:
        """See `pipeline.models.Model`."""
        self._check_length(batch.token_ids.shape[1])
        token_ids = torch.from_numpy(batch.token_ids).to(self.device)
        real = torch.arange(token_ids.shape[1]) < torch.from_numpy(batch.lengths)[:, None]
        mask = real.to(self.device, torch.int64) if batch.is_padded else None
        rows = real.flatten().nonzero()[:, 0].to(self.device)
        taken: dict[str, Tensor] = {}

        def take_at(hook: str) -> Take:
            def take(output: object) -> None:
                taken[hook] = rows_of(output, token_ids.shape, rows, hook)
                if len(taken) == len(self.hooks):
                    raise _AllTaken

            return take

        detach = [self._attach(hook, take_at(hook)) for hook in self.hooks]
        try:
            with torch.inference_mode():
                self._run(token_ids, mask)
        except _AllTaken:
            return {hook: taken[hook] for hook in self.hooks}
        except IndexError as error:
            raise InputError(
                f"the model refused token ids up to {batch.token_ids.max()} ({error}): its vocabulary is not "
                "that of tokens.tokenizer"
            ) from error
        finally:
            for remove in detach:
                remove()
        silent = [hook for hook in self.hooks if hook not in taken]
        raise InputError(
            f"the model never came to hook {', '.join(silent)}: choose a hook that its forward pass visits"
        )

    def _check_length(self, length: int) -> None:
        """Stop for a context that the model can not take."""
        if self.max_context is not None and length > self.max_context:
            raise InputError(
                f"a context of {length} tokens is longer than the model's {self.max_context}: "
                "lower tokens.context_size"
            )


def rows_of(output: object, shape: torch.Size, rows: Tensor, hook: str) -> Tensor:
    """X of the real tokens, a new float32 [N, D], from an output [B, T, ...] (of a tuple: its first)."""
    x = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(x, Tensor) or x.ndim < 3 or x.shape[:2] != shape:
        found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            f"hook {hook} gives {found}, not one vector for each of the {list(shape)} tokens: choose another"
        )
    # index_select copies, so that later layers may work in place on what the hook saw.
    return x.detach().flatten(0, 1).flatten(1).index_select(0, rows).float()


def refuse_unknown_hooks(hooks: Iterable[str], known: Iterable[str]) -> None:
    """Every hook must be known, else InputError with the nearest names."""
    names = sorted(known)
    for hook in hooks:
        if hook not in names:
            _refuse(hook, names)


def _refuse(hook: str, names: list[str]) -> NoReturn:
    """Say which names are near."""
    near = difflib.get_close_matches(hook, names, n=3, cutoff=0.5) or names[:8]
    raise InputError(f"the model has no hook {hook!r}; near: {', '.join(near)}")
