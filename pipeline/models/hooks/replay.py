"""A forward pass that begins at a hook: what modules gave before it is kept once, and given again.

A call of a module that has ended when the pass comes to a hook cannot depend on what is put there. So its
output for a batch is kept, and passes over contexts of that batch, in any order and again and again, are
given it without running the module: of a language model all blocks below the hook, and what the hook's own
block did before it. Nothing of a model's structure is assumed but that its calls do not depend on the
contexts.

After the hook, in a causal model, rows before the first at which something else is put stay as they were:
linear layers are run on the rows from there on, and give what is kept for the others.

Kept are outputs of a value for each token, [B, T, ...], next to which others [B, ...] may stand. All else, as
rotary angles or what experts gave for the tokens sent to them, is computed anew, as is what no module does.
Whether all this holds for a model (which may not be causal, or have a bias [heads, T, T] and as many heads as
contexts) its logits decide: see `pipeline.models.Model.begin`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves, tree_map

from pipeline.models.device import to_device
from schemas.values import I64, TokenBatch

MOST_BYTES = 1 << 30
"""Of what is kept of linear layers after the hook; where that does not do, they run on all rows."""


class Call(NamedTuple):
    """A module, and what it gave, None for what is computed anew; `before` the pass came to the hook?"""

    module: nn.Module
    output: object
    before: bool


@dataclass(frozen=True)
class Begun:
    """A batch that was run once, see `pipeline.models.Model.begin`; or some of its contexts, again and again.

    Of the batch `x`: hook name -> x float32 [N, D], `logits` float32 [n, V] of the rows requested, and the
    calls that are kept, by their ends; None where passes cannot begin at a hook. Of each context that is
    run int64 [C]: which of the batch it is, and the first position at which something else may be put.
    """

    x: dict[str, Tensor]
    logits: Tensor
    calls: list[Call] | None
    contexts: I64
    first: I64

    def again(self, contexts: I64) -> Begun:
        """Contexts of these, by their places, int64."""
        return replace(self, contexts=self.contexts[contexts], first=self.first[contexts])


class Recorder:
    """Keeps what modules give, and from `stop` to `close` what linear layers do."""

    def __init__(self, shape: torch.Size) -> None:
        """`shape`: [B, T] of the batch."""
        self._shape, self._begun, self._calls = shape, list[int](), list[Call]()
        self._stopped, self._closed, self._bytes = False, False, 0

    @property
    def calls(self) -> list[Call]:
        """What was kept."""
        return [call for call in self._calls if call.before or self._bytes <= MOST_BYTES]

    def stop(self) -> None:
        """The pass has come to the hook: what ends from here on may depend on it."""
        self._stopped = True

    def close(self) -> None:
        """The pass has come to the end of the blocks."""
        self._closed = True

    def begin(self, module: nn.Module, inputs: object) -> None:  # noqa: ARG002 - as torch calls it
        """A module is called."""
        if not self._stopped:
            self._begun.append(len(self._calls))

    def end(self, module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG002
        """Its call ends: before the hook it stands for those within it, if what it gives can be kept."""
        kept = _mapped(Tensor.clone, output) if _is_of_tokens(output, self._shape) else None
        if not self._stopped:
            first = self._begun.pop()
            if kept is not None:  # calls inside of this one are never made again
                del self._calls[first:]
            # copies, as later modules may work in place on what was given
            self._calls.append(Call(module, kept, before=True))
        elif type(module) is nn.Linear and not self._closed and self._bytes <= MOST_BYTES:
            self._calls.append(Call(module, kept, before=False))
            self._bytes += kept.nbytes if isinstance(kept, Tensor) else 0


@contextmanager
def recording(shape: torch.Size) -> Iterator[Recorder]:
    """What modules of this process give, in a batch [B, T], while the block runs, until `stop`."""
    recorder = Recorder(shape)
    with ExitStack() as attached:
        attached.callback(register_module_forward_pre_hook(recorder.begin).remove)
        attached.callback(register_module_forward_hook(recorder.end).remove)
        yield recorder


@contextmanager
def replaying(begun: Begun, batch: TokenBatch, device: torch.device) -> Iterator[None]:
    """Modules give what is kept of them, for the contexts `batch` of what was begun, while the block runs."""
    # places of a [C, T] batch that are real and not before the first at which something else may be put
    at = np.arange(batch.token_ids.shape[1])
    live = np.flatnonzero((at >= begun.first[:, None]) & (at < batch.lengths[:, None]))
    contexts, places = to_device(begun.contexts, device), to_device(live, device)
    some = _ContextSubset(contexts, places, batch.token_ids.shape)
    of_module = defaultdict[nn.Module, list[Call]](list)
    for call in begun.calls or ():
        of_module[call.module].append(call)
    with ExitStack() as attached:
        for module, calls in of_module.items():
            attached.callback(_stand_in(module, calls, some))
        yield


class _ContextSubset(NamedTuple):
    """Contexts int64 [C] of what was begun; among their [C, T] = `shape` places those that may change."""

    contexts: Tensor
    live: Tensor
    shape: tuple[int, ...]


def _stand_in(module: nn.Module, calls: list[Call], some: _ContextSubset) -> Callable[[], None]:
    """Give what is kept of the calls, one after another, in place of the module's; what ends that."""
    own, before, rest = module.forward, module.__dict__.get("forward"), iter(calls)

    def forward(*inputs: Any, **named: Any) -> object:
        call = next(rest, None)
        if call is None or call.output is None:
            return own(*inputs, **named)
        output = _mapped(lambda one: one.index_select(0, some.contexts), call.output)
        if call.before:
            return output
        # a linear layer treats every row alone: it is run on those of x [C, T, ...] that may change
        x = inputs[0]
        assert x.shape[:2] == some.shape, f"{list(x.shape)} is not a batch of {list(some.shape)}"
        rows = own(x.flatten(0, 1).index_select(0, some.live))
        return output.flatten(0, 1).index_copy(0, some.live, rows).view(output.shape)

    def end() -> None:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before

    module.__dict__["forward"] = forward  # not by setattr, which bridges hand on to what they wrap
    return end


def _mapped(function: Callable[[Tensor], Tensor], output: object) -> Any:
    """The same of new tensors."""
    return tree_map(lambda one: function(one) if isinstance(one, Tensor) else one, output)


def _is_of_tokens(output: object, shape: torch.Size) -> bool:
    """Whether a call gave a tensor [B, T, ...], and next to it nothing but tensors [B, ...] and None."""
    leaves = [leaf for leaf in tree_leaves(output) if leaf is not None]
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        return False
    same = all(leaf.ndim > 1 and leaf.shape[0] == shape[0] for leaf in leaves)
    return same and leaves[0].ndim > 2 and leaves[0].shape[:2] == shape
