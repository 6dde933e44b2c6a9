"""A forward pass that begins at a hook: what modules gave before it is kept once, and given again.

A call of a module that has ended when the pass comes to a hook can not depend on what is put there. So its
output for a batch is kept, and passes over contexts of that batch, in any order and again and again, are
given it without running the module: of a language model all blocks below the hook, and what the hook's own
block did before it. Nothing of a model's structure is assumed but that its calls do not depend on the
contexts.

Kept are outputs of a value for each token, [B, T, ...], beside which others [B, ...] may stand. All else, as
rotary angles or what experts gave for the tokens sent to them, is computed anew, as is what no module does.
Where such a shape deceives (a bias [heads, T, T] with as many heads as contexts), the logits tell: see
`pipeline.models.Model.begin`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves, tree_map

Calls = list[tuple[nn.Module, object]]
"""Modules and what they gave, by the end of their calls; None for what is computed anew."""


@dataclass(frozen=True)
class Begun:
    """A batch that was run once, see `pipeline.models.Model.begin`; or some of its contexts, again and again.

    Of the batch `x`: hook name -> x float32 [N, D], `logits` float32 [n, V] of the rows asked for, and what
    is kept, None where passes can not begin at a hook; `contexts` int64: which of its contexts they run.
    """

    x: dict[str, Tensor]
    logits: Tensor
    calls: Calls | None
    contexts: Tensor

    def again(self, contexts: Tensor) -> Begun:
        """Contexts of these, by their places, int64."""
        return Begun(self.x, self.logits, self.calls, self.contexts[contexts])


class Recorder:
    """Keeps what modules give until `stop`."""

    def __init__(self, shape: torch.Size) -> None:
        """`shape`: [B, T] of the batch."""
        self.calls: Calls = []
        self._shape, self._begun = shape, list[int]()
        self._stopped = False

    def stop(self) -> None:
        """The pass has come to the hook: what ends from here on may depend on it."""
        self._stopped = True

    def begin(self, module: nn.Module, inputs: object) -> None:  # noqa: ARG002 - as torch calls it
        """A module is called."""
        if not self._stopped:
            self._begun.append(len(self.calls))

    def end(self, module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG002
        """Its call ends: it stands for those within it, if what it gives can be kept."""
        if self._stopped:
            return
        first = self._begun.pop()
        if not _is_of_tokens(output, self._shape):
            self.calls.append((module, None))
            return
        del self.calls[first:]
        # a copy, as later modules may work in place on it
        self.calls.append(
            (module, tree_map(lambda one: one.clone() if isinstance(one, Tensor) else one, output))
        )


@contextmanager
def recording(shape: torch.Size) -> Iterator[Recorder]:
    """What modules of this process give, in a batch [B, T], while the block runs, until `stop`."""
    recorder = Recorder(shape)
    with ExitStack() as attached:
        attached.callback(register_module_forward_pre_hook(recorder.begin).remove)
        attached.callback(register_module_forward_hook(recorder.end).remove)
        yield recorder


@contextmanager
def replaying(calls: Calls, contexts: Tensor) -> Iterator[None]:
    """Modules give what is kept of them, for `contexts` int64 of the batch, while the block runs."""
    of_module = defaultdict[nn.Module, list[object]](list)
    for module, output in calls:
        of_module[module].append(output)
    with ExitStack() as attached:
        for module, outputs in of_module.items():
            attached.callback(_stand_in(module, outputs, contexts))
        yield


def _stand_in(module: nn.Module, outputs: list[object], contexts: Tensor) -> Any:
    """Give `outputs` one after another in the place of the module's; what ends that."""
    own, before, given = module.forward, module.__dict__.get("forward"), iter(outputs)

    def forward(*inputs: Any, **named: Any) -> object:
        output = next(given, None)
        return own(*inputs, **named) if output is None else _of(output, contexts)

    def end() -> None:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before

    module.__dict__["forward"] = forward  # not by setattr, which bridges hand on to what they wrap
    return end


def _of(output: object, contexts: Tensor) -> object:
    """Of an output for a batch that for some of its contexts, in new tensors."""
    return tree_map(lambda one: one.index_select(0, contexts) if isinstance(one, Tensor) else one, output)


def _is_of_tokens(output: object, shape: torch.Size) -> bool:
    """Whether a call gave a tensor [B, T, ...], and beside it nothing but tensors [B, ...] and None."""
    leaves = [leaf for leaf in tree_leaves(output) if leaf is not None]
    if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
        return False
    same = all(leaf.ndim > 1 and leaf.shape[0] == shape[0] for leaf in leaves)
    return same and leaves[0].ndim > 2 and leaves[0].shape[:2] == shape
