"""Loader of TransformerLens' HookedTransformer, which transformer-lens 3 has and 4 has not.

For SAEs that were trained with it and on whose last bits it depends: with the same model.processing the
loader `transformer_lens` gives the same x up to rounding. The model of transformers is loaded from its folder
and converted by its configuration, or, where the library knows an architecture by names alone, by the name of
the model. n_ctx is kept at N_CTX, as every layer holds a mask [n_ctx, n_ctx].
"""

from __future__ import annotations

import importlib.metadata
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.files import model_files
from pipeline.models.files.foreign_code import BUILD, refuse_run, refusing, without_foreign_code
from pipeline.models.files.model_files import CONFIG, config_of, folder_of, longest_context
from pipeline.models.files.weight_files import check_size
from pipeline.models.loaders import transformer_lens
from schemas.errors import InputError
from schemas.names import PROCESSING
from schemas.run import file as run_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.models.hooks.attach import Attach
    from pipeline.models.hooks.hooked import HookedModel
    from pipeline.models.loaders.agreement import Plain
    from schemas.values import Agreement

LOADER = "hooked_transformer"

N_CTX = 4096
"""Longest context kept, where the model takes longer ones."""

FULL = ("full_attention", "global")
"""What configurations of transformers call a layer without an attention window."""

LIBRARYS_OWN = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")
"""Repositories of models in a format of the library, for which transformers has no model."""

digest, digest_of_name = model_files.digest, model_files.digest_of_name


def load(model: run_file.Model, hooks: list[str], device: str) -> HookedModel:
    """See pipeline.models.load_model."""
    import torch

    from pipeline.models.hooks.hooked import HookedModel

    version = importlib.metadata.version("transformer-lens")
    if int(version.partition(".")[0]) >= 4:  # which has no such class
        raise InputError(
            f"model.loader: hooked_transformer needs transformer-lens 3, but {version} is installed: set "
            "model.loader: transformer_lens, which returns the same x with the same model.processing"
        )
    with (
        refusing(f"model {model.path} cannot be loaded by {LOADER}", BUILD),
        without_foreign_code(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", DeprecationWarning)  # that it is gone in version 4 is known here
        hooked, agreement, longest = _loaded(model, hooks, device)
    return HookedModel(
        hooks,
        _attacher(hooked),
        _runner(hooked),
        torch.device(device),
        longest,
        head=transformer_lens.head_of(hooked),
        agreement=agreement,
        refuse=partial(refuse_run, model.path, LOADER),
    )


def _loaded(model: run_file.Model, hooks: list[str], device: str) -> tuple[Any, Agreement | None, int]:
    """The model as requested; how it differs, without processing, from transformers' own; the longest
    context that it takes.
    """
    import torch

    from pipeline.models.loaders.agreement import require_agreement, run_plain
    from pipeline.models.loaders.rotary import refuse_longrope

    pinned = None if Path(model.path).is_dir() else model_files.pinned(model.path)
    repository = None if pinned is None else pinned.repository
    if pinned is not None and pinned.repository.startswith(LIBRARYS_OWN):
        from transformer_lens import HookedTransformer

        options = {"device": device, "dtype": model.dtype, "revision": pinned.commit, **_flags(model)}
        own = _ready(HookedTransformer.from_pretrained_no_processing(pinned.repository, **options))
        return own, None, own.cfg.n_ctx
    folder, dtype = folder_of(model.path), getattr(torch, model.dtype)
    check_size(folder, model.path)
    weights = _weights(folder, dtype, device)
    refuse_longrope(weights, model.path, LOADER)
    plain = run_plain(weights, hooks, longest_context(weights.config.to_dict()))
    converted = partial(_converted, weights, folder, repository, device, dtype)
    hooked = _ready(converted(dict.fromkeys(PROCESSING, False)))
    agreement = _compared(hooked, weights, plain, hooks)
    require_agreement(agreement, dtype, model.path, LOADER)
    longest = min([hooked.cfg.n_ctx, *_other_windows(hooked.cfg, weights.config.get_text_config())])
    return (_ready(converted(_flags(model))) if model.weight_processing else hooked), agreement, longest


def _ready(hooked: Any) -> Any:
    return hooked.eval().requires_grad_(False)


def _runner(hooked: Any) -> Callable[[Tensor, Tensor | None], Tensor]:
    return lambda token_ids, mask: hooked(token_ids, return_type="logits", attention_mask=mask)


def max_context(path: str) -> int | None:
    """See pipeline.models.max_context."""
    longest = transformer_lens.max_context(path)
    return longest and min(longest, N_CTX)


def _flags(model: run_file.Model) -> dict[str, bool]:
    """All processing that there is, on or off."""
    return {name: name in model.weight_processing for name in PROCESSING}


def _weights(folder: Path, dtype: torch.dtype, device: str) -> Any:
    """The model of transformers, with the attention that is also written out in HookedTransformer."""
    from transformers import AutoModelForCausalLM

    settings = {"trust_remote_code": False, "local_files_only": True, "attn_implementation": "eager"}
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **settings)
    return loaded.to(device).eval()


def _converted(
    weights: Any,
    folder: Path,
    repository: str | None,
    device: str,
    dtype: torch.dtype,
    flags: dict[str, bool],
) -> Any:
    """The steps of HookedTransformer.from_pretrained (3.9), which takes only names."""
    from transformer_lens import HookedTransformer, loading_from_pretrained

    with tempfile.TemporaryDirectory() as named:
        # in a folder whose name says nothing, for the library guesses architectures from names; it reads
        # n_ctx, which GPT-2's configuration in transformers 5 has not
        content = config_of(folder / CONFIG)
        content.setdefault("n_ctx", content.get("n_positions"))
        (Path(named) / CONFIG).write_text(json.dumps(content), encoding="utf-8")
        options = {"hf_cfg": weights.config.to_dict(), "fold_ln": flags["fold_ln"], "device": device}
        options |= {"dtype": dtype, "n_ctx": max_context(str(folder))}
        try:
            config = loading_from_pretrained.get_pretrained_model_config(named, **options)
        except NotImplementedError:
            if repository is None or Path(repository).exists():
                raise  # the library would read what lies here
            config = loading_from_pretrained.get_pretrained_model_config(repository, **options)
        state = loading_from_pretrained.get_pretrained_state_dict(named, config, weights, dtype=dtype)
    config.tokenizer_name = None  # ids come ready
    hooked = HookedTransformer(config, move_to_device=False)
    hooked.load_and_process_state_dict(state, **flags)
    hooked.move_model_modules_to_device()  # type: ignore[no-untyped-call]
    return hooked


def _compared(hooked: Any, weights: Any, plain: Plain, hooks: list[str]) -> Agreement:
    """By what its blocks are given and give."""
    from torch import nn

    from pipeline.models.loaders.agreement import compare

    # architectures name their blocks in many ways: they are the first list of as many modules as layers
    lists = (part for part in weights.modules() if isinstance(part, nn.ModuleList))
    blocks = next((blocks for blocks in lists if len(blocks) == hooked.cfg.n_layers), ())
    places = {f"blocks.{n}.hook_resid_pre": plain.inputs.get(block) for n, block in enumerate(blocks)}
    places |= {f"blocks.{n}.hook_resid_post": plain.outputs.get(block) for n, block in enumerate(blocks)}
    return compare(plain, hooks, places.get, _attacher(hooked), _runner(hooked))


def _other_windows(hooked: Any, config: Any) -> Iterator[int]:
    """Attention windows of layers that have another one here than in transformers: longer contexts than
    such a window are computed otherwise, and the few tokens that are compared show nothing of it.
    """
    local = hooked.attn_types if hooked.use_local_attn else ["global"] * hooked.n_layers
    window = getattr(config, "sliding_window", None) or getattr(config, "window_size", None)
    kinds = getattr(config, "layer_types", None) or getattr(config, "attention_layers", None)
    for here, there in zip(local, kinds or ["sliding"] * hooked.n_layers, strict=False):
        pair = {hooked.window_size if here == "local" else None, None if there in FULL else window}
        if len(pair) > 1:
            yield min(size for size in pair if size is not None)


def _attacher(hooked: Any) -> Attach:
    """Attach at its hook points."""
    from pipeline.models.hooks.attach import attacher

    attach = attacher({}, hooked)
    return lambda name, take: attach(_module_output(hooked, name), take)


def _module_output(hooked: Any, name: str) -> str:
    """The bridge's name of what a sublayer gives, mlp.hook_out: hook_mlp_out, where no norm follows."""
    block, _, sublayer = name.removesuffix(".hook_out").rpartition(".")
    if (
        not name.endswith((".mlp.hook_out", ".attn.hook_out"))
        or hooked.cfg.use_normalization_before_and_after
    ):
        return name
    return f"{block}.hook_{sublayer}_out"
