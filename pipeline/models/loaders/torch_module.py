"""Loader of any torch module: `path` is `package.module:function`, a function that builds it without
arguments.

The module's forward takes token ids int64 [B, T] or, where the corpus holds vectors, these, [B, T, width] in
the model's dtype. Hook names are module paths (`layers.3`, `layers.3.mlp`); x
is the module's output [B, T, ...], of a tuple the first. Contexts are padded with id 0 on the right and no
mask is given: the module must be causal, or no context be shorter than the rest. Losses need a module that
returns the logits [B, T, V] of the next token, alone, first in a tuple, or as `.logits`.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.files.foreign_code import refuse_run, refusing
from schemas.errors import InputError
from schemas.records import Inputs, digest_of
from schemas.run import file as run_file

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.models.hooks.attach import Attach, Detach, Take
    from pipeline.models.hooks.hooked import HookedModel


LOADER = "torch_module"


def load(model: run_file.Model, hooks: list[str], device: str, inputs: Inputs | None = None) -> HookedModel:
    """See pipeline.models.load_model."""
    import torch

    from pipeline.models.hooks.hooked import HookedModel
    from pipeline.models.loaders.rotary import by_context

    if model.weight_processing:
        raise InputError(
            f"model.processing ({', '.join(model.weight_processing)}) is a TransformerLens setting and not "
            "possible with model.loader: torch_module: set model.processing: {}"
        )
    dtype = getattr(torch, model.dtype)
    module = _build(model.path, device, dtype)

    def run(given: Tensor, mask: Tensor | None) -> object:  # noqa: ARG001 - see the top of this file
        return module(given.to(dtype) if given.is_floating_point() else given)

    limit = getattr(module, "max_context", None)
    if not (limit is None or type(limit) is int):
        raise InputError(
            f"model {model.path} has max_context {limit!r}, which is not a whole number of tokens"
        )
    refuse = partial(refuse_run, model.path, LOADER)
    by = by_context(module, model.path)
    return HookedModel(
        hooks, attacher(module), by(run), torch.device(device), limit, inputs=inputs, refuse=refuse
    )


def digest(path: str) -> str:
    """See pipeline.models.model_digest; nothing is imported, not even the packages that the module is in."""
    module, _ = _parts(path)
    _add_working_directory()
    spec = _spec(module)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise InputError(f"model {path}: there is no module {module!r} on the import path")
    return digest_of({"path": path, "source": hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()})


def _spec(module: str) -> ModuleSpec | None:
    """Where a module's file is: each part is searched for in the folders of the package before it."""
    spec, places = None, None
    for part in module.split("."):
        finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
        specs = (find(part, places) for find in finders if find is not None)
        spec = next((candidate for candidate in specs if candidate is not None), None)
        if spec is None:
            return None
        places = list(spec.submodule_search_locations or ())  # of a module that is not a package: nowhere
    return spec


def max_context(path: str) -> int | None:  # noqa: ARG001 - only the built module can tell
    """See pipeline.models.max_context."""
    return None


def _parts(path: str) -> tuple[str, str]:
    """Module and function of `package.module:function`."""
    module, _, function = path.partition(":")
    if not module or not function:
        raise InputError(f"model path {path!r} is not package.module:function")
    return module, function


def _build(path: str, device: str, dtype: Any) -> nn.Module:
    """Call the function that builds the module, and make it ready; what its code raises is an InputError."""
    from torch import nn

    name, function = _parts(path)
    _add_working_directory()
    with refusing(f"model {path} cannot be imported"):
        build: Any = getattr(importlib.import_module(name), function)
    with refusing(f"model {path} cannot be built without arguments"):
        module = build()
        if not isinstance(module, nn.Module):
            raise InputError(
                f"model {path} builds a {type(module).__name__}; it must build a torch.nn.Module"
            )
        return module.to(device, dtype).eval().requires_grad_(False)


def _add_working_directory() -> None:
    """Modules are searched for there too, as `python -m` does."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))


def attacher(module: nn.Module) -> Attach:
    """Attach by module path."""
    from pipeline.models.hooks.attach import attach_to_module, refuse_hook

    modules = {name: part for name, part in module.named_modules() if name}

    def attach(name: str, take: Take) -> Detach:
        if name not in modules:
            refuse_hook(name, modules)
        return attach_to_module(modules[name], take)

    return attach
