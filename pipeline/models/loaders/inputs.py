"""No model: x is what the corpus holds, at the hook `input`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.records import Inputs
from schemas.run import file as run_file

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.hooks.hooked import HookedModel

HOOK = "input"


def digest(path: str) -> str:  # noqa: ARG001 - there is no model
    """There is nothing to digest."""
    return "inputs"


def max_context(path: str) -> None:
    """Contexts may have any size."""


def load(
    model: run_file.Model,  # noqa: ARG001 - there is none
    hooks: list[str],
    device: str,
    inputs: Inputs | None,
) -> HookedModel:
    """See pipeline.models.load_model."""
    import torch

    from pipeline.models.hooks.hooked import HookedModel
    from pipeline.models.loaders.torch_module import attacher

    module = torch.nn.ModuleDict({HOOK: torch.nn.Identity()})

    def run(x: Tensor, mask: Tensor | None) -> object:  # noqa: ARG001 - rows do not see each other
        return module[HOOK](x)

    return HookedModel(hooks, attacher(module), run, torch.device(device), None, inputs=inputs)
