"""Loader of Hugging Face models through TransformerLens' TransformerBridge (versions 3.9 and 4).

Weights stay as Hugging Face has them (no folding, no centring), attention is eager, and hook names are
TransformerLens': `blocks.9.hook_resid_post`, `blocks.3.attn.hook_z` (flattened to [heads * d_head]), ... The
pass is ended by an exception from our own hook, which works alike in both versions and for every
architecture; `run_with_cache(stop_at_layer=...)` would compute the whole last block and, at the last layer,
the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas import run_file
from schemas.errors import InputError
from schemas.records import digest_of

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.hooked import Attach, HookedModel, Run, Take

CONFIG = "config.json"

CONTENT = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".py"}
"""Files that make the model what it is, beside config.json."""

CONTEXT_KEYS = ("n_positions", "max_position_embeddings", "n_ctx", "max_sequence_length", "seq_length")
"""Where the configurations of different architectures keep the longest context."""


def load(model: run_file.Model, hooks: list[str], device: str) -> HookedModel:
    """See pipeline.models.load_model."""
    import torch

    from pipeline.models.hooked import HookedModel, refuse_unknown_hooks

    bridge = _boot(model, device)
    points = bridge.hook_dict
    refuse_unknown_hooks(hooks, points)
    limit = _longest(bridge.original_model.config.to_dict())
    return HookedModel(hooks, _attacher(points), _runner(bridge), torch.device(device), limit)


def digest(path: str) -> str:
    """See pipeline.models.model_digest."""
    folder = Path(path)
    if not folder.is_dir():
        return digest_of({"hugging_face": path})
    files = sorted(f for f in folder.iterdir() if f.suffix in CONTENT or f.name == CONFIG)
    return digest_of({file.name: _sha256(file) for file in files})


def max_context(path: str) -> int | None:
    """See pipeline.models.max_context."""
    config = Path(path) / CONFIG
    return _longest(json.loads(config.read_text(encoding="utf-8"))) if config.is_file() else None


def _boot(model: run_file.Model, device: str) -> Any:
    """The bridge, in evaluation mode."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils.logging import disable_progress_bar

    folder = Path(model.path)
    if folder.is_dir() and not (folder / CONFIG).is_file():
        raise InputError(
            f"model folder {model.path} has no {CONFIG}: give a folder as saved by save_pretrained"
        )
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        bridge = TransformerBridge.boot_transformers(
            model.path, device=device, dtype=getattr(torch, model.dtype)
        )
    except (OSError, ValueError) as error:
        raise InputError(f"model {model.path} can not be loaded: {' '.join(str(error).split())}") from error
    return bridge.eval()


def _attacher(points: dict[str, Any]) -> Attach:
    """Attach through TransformerLens, which brings heads and scales into its own conventions first."""

    def attach(name: str, take: Take) -> Callable[[], None]:
        point = points[name]

        def hook_function(value: Tensor, hook: Any) -> None:  # noqa: ARG001 - TransformerLens passes it by name
            take(value)

        point.add_hook(hook_function)
        handle = point.fwd_hooks[-1]

        def remove() -> None:
            handle.hook.remove()
            point.fwd_hooks.remove(handle)

        return remove

    return attach


def _runner(bridge: Any) -> Run:
    """Forward without keeping a key-value cache or attention patterns."""

    def run(token_ids: Tensor, mask: Tensor | None) -> object:
        return bridge.forward(token_ids, return_type=None, attention_mask=mask, use_cache=False)

    return run


def _longest(config: dict[str, Any]) -> int | None:
    """Longest context by a Hugging Face configuration (of a multimodal model: of its text part)."""
    config = config.get("text_config") or config
    return next((config[key] for key in CONTEXT_KEYS if isinstance(config.get(key), int)), None)


def _sha256(path: Path) -> str:
    """sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
