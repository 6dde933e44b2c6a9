"""Loader of Hugging Face models through TransformerLens' TransformerBridge (versions 3.9 and 4).

Weights stay as Hugging Face has them, unless model.processing asks for folding or centring (the bridge's
compatibility mode, which gives HookedTransformer's values). Attention is eager. Hook names are
TransformerLens', `blocks.9.hook_resid_post`, `blocks.3.attn.hook_z` (flattened to [heads * d_head]), ..., or
paths of Hugging Face's own modules, `model.layers.9`: x is the module's output, of a tuple the first.

The pass is ended by an exception from our own hook, which works alike in both versions and for every
architecture; `run_with_cache(stop_at_layer=...)` would compute the whole last block and, at the last layer,
the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from schemas import run_file
from schemas.errors import InputError
from schemas.records import digest_of

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.attach import Attach, Detach, Take
    from pipeline.models.hooked import HookedModel, Run
    from pipeline.models.unembedding import Head

CONFIG = "config.json"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
"""What may be the name of a model at Hugging Face."""

CONTENT = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".py"}
"""Files that make the model what it is, beside config.json."""

CONTEXT_KEYS = ("n_positions", "max_position_embeddings", "n_ctx", "max_sequence_length", "seq_length")
"""Where the configurations of different architectures keep the longest context."""


HEADS = ("CausalLM", "LMHead", "ConditionalGeneration")
"""In the names of architectures whose folders hold weights of a head."""

RESIDUAL_MIDDLE = "hook_resid_mid"
"""Ends hooks that the bridge lays on the second norm's input: what is put there reaches only that norm."""


def load(model: run_file.Model, hooks: list[str], device: str) -> HookedModel:
    """See pipeline.models.load_model."""
    import torch

    from pipeline.models.hooked import HookedModel

    bridge = _boot(model, device)
    _process_weights(bridge, model)
    bridge.original_model.requires_grad_(False)  # gradients are of what is put in, never of weights
    limit = _longest(bridge.original_model.config.to_dict())
    read_only = {name for name in bridge.hook_dict if name.endswith(RESIDUAL_MIDDLE)}
    head = head_of(bridge) if _predicts_next_token(bridge) else None
    run = _runner(bridge)
    return HookedModel(hooks, _attacher(bridge), run, torch.device(device), limit, read_only, head)


def digest(path: str) -> str:
    """See pipeline.models.model_digest."""
    folder = Path(path)
    if not folder.is_dir():
        return digest_of({"hugging_face": path})
    there = (
        f for f in folder.iterdir() if not f.name.startswith(".")
    )  # nor a file manager's ._*.safetensors
    files = sorted(f for f in there if f.suffix in CONTENT or f.name == CONFIG)
    return digest_of({file.name: _sha256(file) for file in files})


def max_context(path: str) -> int | None:
    """See pipeline.models.max_context; the first to look at the path, so it says where nothing is there."""
    require_folder(path)
    config = Path(path) / CONFIG
    return _longest(config_of(config)) if config.is_file() else None


def require_folder(path: str) -> None:
    """A folder must hold a model; a name is Hugging Face's to know."""
    if not Path(path).exists() and not _HUB_NAME.fullmatch(path):
        raise InputError(f"model {path} does not exist: give a model's folder, or its name at Hugging Face")
    if Path(path).is_dir() and not (Path(path) / CONFIG).is_file():
        raise InputError(f"model folder {path} has no {CONFIG}: give a folder as saved by save_pretrained")


def refuse_model(path: str, error: Exception) -> NoReturn:
    """Say in one sentence why TransformerLens can not load this; its own first one, as lists may follow."""
    reason = " ".join(str(error).split()).partition(". ")[0].rstrip(".")
    raise InputError(
        f"model {path} can not be loaded by transformer_lens ({reason}): give another model, or build this "
        "one in a function and set model.loader: torch_module"
    ) from error


def head_of(model: Any) -> Head | None:
    """Where a TransformerLens model's residual stream ends, and its W_U; None where it has no blocks."""
    from pipeline.models.unembedding import Head

    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    if last not in model.hook_dict:
        return None
    try:
        return Head(last, model.W_U.detach())
    except (AttributeError, AssertionError, RuntimeError):  # an unembedding that is no single matrix
        return Head(last, None)


def _boot(model: run_file.Model, device: str) -> Any:
    """The bridge, in evaluation mode."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils.logging import disable_progress_bar

    require_folder(model.path)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        bridge = TransformerBridge.boot_transformers(
            model.path, device=device, dtype=getattr(torch, model.dtype)
        )
    except Exception as error:  # noqa: BLE001 - damaged files make the libraries raise anything
        refuse_model(model.path, error)
    return bridge.eval()


def _process_weights(bridge: Any, model: run_file.Model) -> None:
    """Fold and centre as HookedTransformer would have."""
    if not model.weight_processing:
        return
    flags = {name: name in model.weight_processing for name in run_file.PROCESSING}
    try:
        bridge.enable_compatibility_mode(disable_warnings=True, **flags)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"model.processing ({', '.join(model.weight_processing)}) is not possible with model "
            f"{model.path} ({' '.join(str(error).split())}): set model.processing: {{}}"
        ) from error


def _attacher(bridge: Any) -> Attach:
    """Attach through TransformerLens; at a Hugging Face module where the name is none of its hooks."""
    from pipeline.models.attach import attach_to_module, attach_to_point, refuse_hook

    points = bridge.hook_dict
    modules = _hugging_face_modules(bridge.original_model)

    def attach(name: str, take: Take) -> Detach:
        if name in points:
            return attach_to_point(bridge, name, take)
        if name not in modules:
            refuse_hook(name, [*points, *modules])
        return attach_to_module(modules[name], take)

    return attach


def _hugging_face_modules(model: Any) -> dict[str, Any]:
    """Hugging Face's module paths -> modules, of a model in which the bridge has wrapped some of them.

    A wrapper stands at the path of what it wraps, which the bridge may run or replace by its own arithmetic.
    """
    wrapped = "._original_component"
    modules: dict[str, Any] = {}
    for path, module in model.named_modules():
        if path and not path.endswith(wrapped) and not path.rpartition(".")[2].startswith("hook_"):
            modules.setdefault(path.replace(wrapped, ""), module)
    return modules


def _runner(bridge: Any) -> Run:
    """Forward without keeping a key-value cache."""
    predicts = _predicts_next_token(bridge)

    def run(token_ids: Tensor, mask: Tensor | None) -> object:
        logits = bridge.forward(token_ids, return_type="logits", attention_mask=mask, use_cache=False)
        return logits if predicts else None

    return run


def _predicts_next_token(bridge: Any) -> bool:
    """Whether its logits are trained ones of the next token.

    The bridge gives an encoder, and a folder that holds no head, a head with random weights.
    """
    config, loaded = bridge.original_model.config, type(bridge.original_model).__name__
    if not bridge.adapter.supports_causal_loss or config.is_encoder_decoder or "MaskedLM" in loaded:
        return False
    stored = config.architectures or [loaded]
    has_head = any(mark in name for name in stored for mark in HEADS)
    return has_head or bool(getattr(config, "tie_word_embeddings", False))


def config_of(path: Path) -> dict[str, Any]:
    """The object in a config.json."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not JSON: copy the model again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no JSON object: copy the model again")
    return config


def _longest(config: dict[str, Any]) -> int | None:
    """Longest context by a Hugging Face configuration (of a multimodal model: of its text part)."""
    text = config.get("text_config")
    config = text if isinstance(text, dict) and text else config
    return next((config[key] for key in CONTEXT_KEYS if isinstance(config.get(key), int)), None)


def _sha256(path: Path) -> str:
    """sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
