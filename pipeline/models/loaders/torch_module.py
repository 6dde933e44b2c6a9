"""Loader of any torch module: `path` is `package.module:function`, a function that builds it without
arguments.

The module's forward takes token ids int64 [B, T] or, where the corpus holds vectors, these, [B, T, width] in
the model's dtype. Hook names are module paths (`layers.3`, `layers.3.mlp`); x
is the module's output [B, T, ...], of a tuple the first. Contexts are padded with id 0 on the right and no
mask is given: the module must be causal, or no context be shorter than the rest. Losses need a module that
returns the logits [B, T, V] of the next token, alone, first in a tuple, or as `.logits`.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.files.foreign_code import refuse_run, refusing
from schemas.errors import InputError
from schemas.records import Inputs, digest_of, digest_of_file
from schemas.run import file as run_file

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pipeline.models.hooks.attach import Attach
    from pipeline.models.hooks.hooked import HookedModel


LOADER = "torch_module"


def load(model: run_file.Model, hooks: list[str], device: str, inputs: Inputs | None = None) -> HookedModel:
    """See pipeline.models.load_model."""
    import torch
    from torch import nn

    from pipeline.models.hooks.hooked import HookedModel
    from pipeline.models.loaders.rotary import by_context

    if model.weight_processing:
        raise InputError(
            f"model.processing ({', '.join(model.weight_processing)}) is a TransformerLens setting and not "
            "possible with model.loader: torch_module: set model.processing: {}"
        )
    dtype = getattr(torch, model.dtype)
    name, function = _parts(model.path)
    _add_working_directory()
    with refusing(f"model {model.path} cannot be imported"):
        build: Any = getattr(importlib.import_module(name), function)
    with refusing(f"model {model.path} cannot be built without arguments"):
        module = build()
        if not isinstance(module, nn.Module):
            raise InputError(
                f"model {model.path} builds a {type(module).__name__}; it must build a torch.nn.Module"
            )
        module = module.to(device, dtype).eval().requires_grad_(False)

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
    # each part is searched for in the folders of the package before it
    spec, places = None, None
    for part in module.split("."):
        finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
        specs = (find(part, places) for find in finders if find is not None)
        spec = next((candidate for candidate in specs if candidate is not None), None)
        if spec is None:
            break
        places = list(spec.submodule_search_locations or ())  # of a module that is not a package: nowhere
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise InputError(f"model {path}: there is no module {module!r} on the import path")
    return digest_of({"path": path, "source": digest_of_file(Path(spec.origin))})


def max_context(path: str) -> int | None:  # noqa: ARG001 - only the built module can tell
    """See pipeline.models.max_context."""
    return None


def _parts(path: str) -> tuple[str, str]:
    """Module and function of `package.module:function`."""
    module, _, function = path.partition(":")
    if not module or not function:
        raise InputError(f"model path {path!r} is not package.module:function")
    return module, function


def _add_working_directory() -> None:
    """Modules are searched for there too, as `python -m` does."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))


def attacher(module: nn.Module) -> Attach:
    """Attach by module path."""
    from pipeline.models.hooks import attach

    return attach.attacher({name: part for name, part in module.named_modules() if name})
