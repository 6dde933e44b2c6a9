"""Loader of Hugging Face models through TransformerLens' TransformerBridge (versions 3.9 and 4).

Weights stay as Hugging Face has them, unless model.processing requests folding or centring (the bridge's
compatibility mode, which gives HookedTransformer's values). Attention is eager. Hook names are
TransformerLens', `blocks.9.hook_resid_post`, `blocks.3.attn.hook_z` (flattened to [heads * d_head]), ..., or
paths of Hugging Face's own modules, `model.layers.9`: x is the module's output, of a tuple the first.

The pass is ended by an exception from our own hook, which works alike in both versions and for every
architecture; `run_with_cache(stop_at_layer=...)` would compute the whole last block and, at the last layer,
the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.models.files import model_files
from pipeline.models.files.foreign_code import BUILD, refuse_run, refusing, without_foreign_code
from pipeline.models.files.model_files import folder_of, longest_context
from pipeline.models.files.weight_files import check_size
from schemas.errors import InputError
from schemas.names import PROCESSING
from schemas.run import file as run_file

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.hooks.attach import Attach
    from pipeline.models.hooks.hooked import HookedModel, Run
    from pipeline.models.hooks.unembedding import Head
    from pipeline.models.loaders.agreement import Plain

LOADER = "transformer_lens"

digest, digest_of_name = model_files.digest, model_files.digest_of_name
max_context = model_files.max_context

HEADS = ("CausalLM", "LMHead", "ConditionalGeneration")
"""In the names of architectures whose folders hold weights of a head."""

RESIDUAL_MIDDLE = "hook_resid_mid"
"""Ends hooks that the bridge lays on the second norm's input: what is put there reaches only that norm."""


def load(model: run_file.Model, hooks: list[str], device: str) -> HookedModel:
    """See pipeline.models.load_model."""
    import torch

    from pipeline.models.hooks.hooked import HookedModel
    from pipeline.models.loaders.agreement import compare, require_agreement
    from pipeline.models.loaders.rotary import by_context

    bridge, plain = _load_bridge(model, hooks, device)
    rotary = by_context(bridge.original_model, model.path)
    with refusing(f"model {model.path} cannot be run by model.loader: {LOADER}", BUILD):
        agreement = compare(plain, hooks, _reference(bridge, plain), _attacher(bridge), _runner(bridge, True))
    require_agreement(agreement, getattr(torch, model.dtype), model.path, LOADER)
    if model.weight_processing:
        # fold and centre as HookedTransformer would have
        flags = {name: name in model.weight_processing for name in PROCESSING}
        try:
            bridge.enable_compatibility_mode(disable_warnings=True, **flags)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"model.processing ({', '.join(model.weight_processing)}) is not possible with model "
                f"{model.path} ({' '.join(str(error).split())}): set model.processing: {{}}"
            ) from error
    bridge.original_model.requires_grad_(False)  # gradients are of what is put in, never of weights
    predicts = _predicts_next_token(bridge)
    read_only = {name for name in bridge.hook_dict if name.endswith(RESIDUAL_MIDDLE)}
    return HookedModel(
        hooks,
        _attacher(bridge),
        rotary(_runner(bridge, predicts)),
        torch.device(device),
        longest_context(bridge.original_model.config.to_dict()),
        read_only,
        head_of(bridge) if predicts else None,
        agreement=agreement,
        refuse=partial(refuse_run, model.path, LOADER),
    )


def head_of(model: Any) -> Head | None:
    """Where a TransformerLens model's residual stream ends, and its W_U; None where it has no blocks."""
    from pipeline.models.hooks.unembedding import Head

    last = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    if last not in model.hook_dict:
        return None
    try:
        return Head(last, model.W_U.detach())
    except Exception:  # noqa: BLE001 - an unembedding that is not a single matrix
        return Head(last, None)


class _LoaderProxy:
    """Stands in for the class of transformers by which the bridge loads a model, which is run before it is
    wrapped. It is loaded from the folder alone, and by no code but that of transformers.
    """

    def __init__(self, hooks: list[str], device: str) -> None:
        self._hooks, self._device = hooks, device
        self.plain: Plain | None = None

    def from_pretrained(self, folder: str, **settings: Any) -> Any:
        """The model on its device, in evaluation mode."""
        from transformer_lens.model_bridge.sources import transformers as source

        from pipeline.models.loaders.agreement import run_plain

        config = settings["config"]
        architecture = source.determine_architecture_from_hf_config(config)  # type: ignore[no-untyped-call]
        of: Any = source.get_hf_model_class_for_architecture(architecture)
        settings = {**settings, "trust_remote_code": False, "local_files_only": True}
        loaded = of.from_pretrained(folder, **settings).to(self._device).eval()
        self.plain = run_plain(loaded, self._hooks, longest_context(loaded.config.to_dict()))
        return loaded


def _load_bridge(model: run_file.Model, hooks: list[str], device: str) -> tuple[Any, Plain]:
    """The bridge, in evaluation mode, and what the model gave before it was wrapped."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils.logging import disable_progress_bar

    folder, watched = folder_of(model.path), _LoaderProxy(hooks, device)
    check_size(folder, model.path)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    boot: Any = TransformerBridge.boot_transformers
    with refusing(f"model {model.path} cannot be loaded by {LOADER}", BUILD), without_foreign_code():
        bridge = boot(str(folder), device=device, dtype=getattr(torch, model.dtype), model_class=watched)
    assert watched.plain is not None
    return bridge.eval(), watched.plain


def _reference(bridge: Any, plain: Plain) -> Callable[[str], Tensor | None]:
    """What transformers' model has for a hook: the input or the output of the module that it stands at."""
    from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

    owners: dict[int, tuple[dict[Any, Tensor], Any]] = {}
    for part in bridge.modules():
        if isinstance(part, GeneralizedComponent) and part.original_component is not None:
            owners[id(part.hook_in)] = plain.inputs, part.original_component
            owners[id(part.hook_out)] = plain.outputs, part.original_component
    points = bridge.hook_dict

    def reference(hook: str) -> Tensor | None:
        if hook not in points:
            return plain.at.get(hook)
        kept, module = owners.get(id(points[hook]), (plain.outputs, None))
        return kept.get(module)

    return reference


def _attacher(bridge: Any) -> Attach:
    """Attach through TransformerLens; at a Hugging Face module where the name is none of its hooks."""
    from pipeline.models.hooks.attach import attacher

    # the bridge has wrapped some modules: a wrapper stands at the path of what it wraps, which the bridge
    # may run or replace by its own arithmetic
    wrapped, modules = "._original_component", dict[str, Any]()
    for path, module in bridge.original_model.named_modules():
        if path and not path.endswith(wrapped) and not path.rpartition(".")[2].startswith("hook_"):
            modules.setdefault(path.replace(wrapped, ""), module)
    return attacher(modules, bridge)


def _runner(bridge: Any, predicts: bool) -> Run:
    """Forward without keeping a key-value cache; None where there are no logits for the next token."""

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
