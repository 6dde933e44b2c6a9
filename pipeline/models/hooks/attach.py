"""Attach a function to a hook, by TransformerLens' hook points or by torch's forward hooks, and detach it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from schemas.errors import InputError

Take = Callable[[object], object | None]
"""Receives what a module gave at a hook; what it returns stands in for that, None leaves it."""

Detach = Callable[[], None]

Attach = Callable[[str, Take], Detach]
"""Call the Take at the hook of this name until the function returned is called; InputError for a name that
is not a hook."""

SETTINGS = {
    "hook_mlp_in": "use_hook_mlp_in",
    "hook_attn_in": "use_attn_in",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_result": "use_attn_result",
}
"""Last part of a hook's name -> the setting of TransformerLens without which it never fires."""


def _attach_to_point(model: Any, point: Any, name: str, take: Take) -> Detach:
    """At a hook point of TransformerLens, in its own conventions for heads and scales.

    A setting that the hook needs is on as long as it is attached, and then what it was before: it costs time
    and memory, and may change last bits.
    """
    setting = SETTINGS.get(name.rpartition(".")[2])
    before = bool(setting and getattr(model.cfg, setting, False))
    if setting:
        try:
            getattr(model, f"set_{setting}")(True)
        except (AssertionError, NotImplementedError, ValueError) as error:
            raise InputError(
                f"hook {name} fires only with TransformerLens' setting {setting}, which this model does not "
                f"support ({' '.join(str(error).split())}): choose another hook"
            ) from error

    # add_hook returns nothing: the handle is the last of the point's list, and is taken out of it again
    point.add_hook(lambda value, hook: take(value))
    handle = point.fwd_hooks[-1]

    def detach() -> None:
        handle.hook.remove()
        point.fwd_hooks.remove(handle)
        if setting:
            getattr(model, f"set_{setting}")(before)

    return detach


def attacher(modules: Mapping[str, nn.Module], model: Any = None) -> Attach:
    """Attach at the hook points of a `model` of TransformerLens, and where it has none, at `modules`.

    InputError, for a name of neither, names the nearest of those that there are.
    """
    # once, for a bridge makes the dictionary anew whenever it is read (30 ms with 30 blocks)
    points = {} if model is None else model.hook_dict

    def attach(name: str, take: Take) -> Detach:
        if name in points:
            return _attach_to_point(model, points[name], name, take)
        if name not in modules:
            names = sorted([*points, *modules])
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:8]
            raise InputError(f"the model has no hook {name!r}; near: {', '.join(near)}")
        handle = modules[name].register_forward_hook(lambda _module, _inputs, output: take(output))
        return handle.remove

    return attach
