"""Loader of TransformerLens' HookedTransformer, which transformer-lens 3 has and 4 has not.

For SAEs that were trained with it and on whose last bits it depends: with the same model.processing the
loader `transformer_lens` gives the same x up to rounding. A local folder is converted as the library converts
the model of that name; n_ctx is kept at N_CTX, as every layer holds a mask [n_ctx, n_ctx].
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models import transformer_lens
from schemas import run_file
from schemas.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.models.attach import Attach, Detach, Take
    from pipeline.models.hooked import HookedModel

N_CTX = 4096
"""Longest context kept, where the model takes longer ones."""

digest = transformer_lens.digest


def load(model: run_file.Model, hooks: list[str], device: str) -> HookedModel:
    """See pipeline.models.load_model."""
    import torch

    from pipeline.models.hooked import HookedModel

    _require_version()
    transformer_lens.require_folder(model.path)
    build = _from_folder if Path(model.path).is_dir() else _from_name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that it is gone in version 4 is known here
            hooked = build(model, device).eval().requires_grad_(False)
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - damaged files make the libraries raise anything
        transformer_lens.refuse_model(model.path, error)

    def run(token_ids: Tensor, mask: Tensor | None) -> object:
        return hooked(token_ids, return_type="logits", attention_mask=mask)

    head = transformer_lens.head_of(hooked)
    attach = _attacher(hooked)
    return HookedModel(hooks, attach, run, torch.device(device), hooked.cfg.n_ctx, head=head)


def max_context(path: str) -> int | None:
    """See pipeline.models.max_context."""
    longest = transformer_lens.max_context(path)
    return longest and min(longest, N_CTX)


def _require_version() -> None:
    """Stop where the class is not there."""
    version = importlib.metadata.version("transformer-lens")
    if int(version.partition(".")[0]) >= 4:
        raise InputError(
            f"model.loader: hooked_transformer needs transformer-lens 3 and {version} is installed: set "
            "model.loader: transformer_lens, which gives the same x with the same model.processing"
        )


def _flags(model: run_file.Model) -> dict[str, bool]:
    """All processing that there is, on or off."""
    return {name: name in model.weight_processing for name in run_file.PROCESSING}


def _from_name(model: run_file.Model, device: str) -> Any:
    """A model by its name on Hugging Face, or by the library's alias of it."""
    from transformer_lens import HookedTransformer

    return HookedTransformer.from_pretrained_no_processing(
        model.path, device=device, dtype=model.dtype, **_flags(model)
    )


def _from_folder(model: run_file.Model, device: str) -> Any:
    """A model from a folder: the steps of HookedTransformer.from_pretrained (3.9), which takes only names."""
    import torch
    from transformer_lens import HookedTransformer, loading_from_pretrained
    from transformers import AutoModelForCausalLM

    dtype, flags = getattr(torch, model.dtype), _flags(model)
    weights = AutoModelForCausalLM.from_pretrained(model.path, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        _write_config(Path(model.path), Path(folder))
        config = loading_from_pretrained.get_pretrained_model_config(
            folder,
            hf_cfg=weights.config.to_dict(),
            fold_ln=flags["fold_ln"],
            device=device,
            dtype=dtype,
            n_ctx=max_context(model.path),
        )
        state = loading_from_pretrained.get_pretrained_state_dict(folder, config, weights, dtype=dtype)
    config.tokenizer_name = None  # ids come ready
    hooked = HookedTransformer(config, move_to_device=False)
    hooked.load_and_process_state_dict(state, **flags)
    hooked.move_model_modules_to_device()  # type: ignore[no-untyped-call]
    return hooked


def _write_config(source: Path, folder: Path) -> None:
    """Write config.json into a folder whose name says nothing: the library guesses architectures from names.

    GPT-2's configuration in transformers 5 has no n_ctx, which the library asks for.
    """
    config = transformer_lens.config_of(source / transformer_lens.CONFIG)
    config.setdefault("n_ctx", config.get("n_positions"))
    (folder / transformer_lens.CONFIG).write_text(json.dumps(config), encoding="utf-8")


def _attacher(hooked: Any) -> Attach:
    """Attach at its hook points."""
    from pipeline.models.attach import attach_to_point, refuse_hook

    def attach(name: str, take: Take) -> Detach:
        name = _module_output(hooked, name)
        if name not in hooked.hook_dict:
            refuse_hook(name, hooked.hook_dict)
        return attach_to_point(hooked, name, take)

    return attach


def _module_output(hooked: Any, name: str) -> str:
    """The bridge's name of what a sublayer gives, mlp.hook_out: hook_mlp_out, where no norm follows."""
    block, _, sublayer = name.removesuffix(".hook_out").rpartition(".")
    if (
        not name.endswith((".mlp.hook_out", ".attn.hook_out"))
        or hooked.cfg.use_normalization_before_and_after
    ):
        return name
    return f"{block}.hook_{sublayer}_out"
