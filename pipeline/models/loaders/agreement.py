"""Whether a model that is run through other code still computes what transformers' own model does.

A bridge or a conversion may compute another function without a word. So transformers' model is run on a few
tokens before anything wraps or converts it, and the same tokens go through what is used: the logits, and
every hook of the run that is a module's input or output, must agree. Which module belongs to a hook is for
the loader to say. Of an encoder with a decoder, the encoder is compared.

B contexts, T positions, N real tokens, D width of x.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.hooks.attach import Attach
from schemas.errors import InputError
from schemas.values import Agreement

LENGTHS = (14, 10)
"""Real tokens of the contexts that are run; pads follow in the second."""

BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest relative difference, |x - x of transformers| / |x of transformers|, by dtype: what other orders of
the same sums come to. float16 has three bits more than bfloat16: an eighth of that bound, and twice as much
for its narrow range."""

INPUTS = ("input", "hidden_states", "input_ids", "x", "inputs_embeds")
"""Names of the argument by which modules take x."""

LOGITS = "logits"


class _AllTaken(Exception):  # noqa: N818 - it carries no error
    """Ends a forward pass of which no logits are wanted."""


@dataclass
class Plain:
    """What transformers' model gave for `ids` int64 [B, T] under `mask`: float32 [N, D], real tokens only.

    `outputs` and `inputs` by module, `at` outputs by the module's path; `why` it could not be run, or empty.
    """

    ids: Tensor
    mask: Tensor
    dtype: torch.dtype
    logits: Tensor | None = None
    outputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    at: dict[str, Tensor] = field(default_factory=dict)
    why: str = ""

    def rows(self, x: object) -> Tensor | None:
        """The real tokens of a tensor [B, T, ...] as float32 [N, D], a copy; None for anything else."""
        x = x[0] if isinstance(x, tuple) and x else x
        x = getattr(x, "last_hidden_state", x)
        if not isinstance(x, Tensor) or x.ndim < 3 or x.shape[:2] != self.ids.shape:
            return None
        return x.detach()[self.mask.bool()].flatten(1).float()


def run_plain(model: Any, hooks: Iterable[str], longest: int | None) -> Plain:
    """Run transformers' own model, keeping what its modules give in the layers that the hooks name."""
    ids, mask = _tokens(model, longest)
    plain = Plain(ids, mask, next(p.dtype for p in model.parameters() if p.is_floating_point()))
    wanted = {number for hook in hooks for number in _layers(hook)}

    def keep(
        path: str, module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: object
    ) -> None:
        x = args[0] if args else next((named[name] for name in INPUTS if name in named), None)
        for kept, value in ((plain.inputs, x), (plain.outputs, output)):
            # of a module that is called several times the first call counts, as at hooks
            if module not in kept and (rows := plain.rows(value)) is not None:
                kept[module] = rows
        if module in plain.outputs:
            plain.at.setdefault(path, plain.outputs[module])

    with ExitStack() as attached, torch.inference_mode():
        for path, module in model.named_modules():
            if path and (not (numbers := _layers(path)) or numbers & wanted):
                hook = module.register_forward_hook(partial(keep, path), with_kwargs=True)
                attached.callback(hook.remove)
        try:
            part = model.get_encoder() if model.config.is_encoder_decoder else model
            output = part(input_ids=ids, attention_mask=mask, use_cache=False)
        except Exception as error:  # noqa: BLE001 - models raise anything for inputs that are not theirs
            plain.why = f"the transformers model does not run on tokens only: {type(error).__name__}"
        else:
            plain.logits = plain.rows(getattr(output, LOGITS, None))
    return plain


def compare(
    plain: Plain,
    hooks: Iterable[str],
    reference: Callable[[str], Tensor | None],
    attach: Attach,
    logits: Callable[[Tensor, Tensor], object],
) -> Agreement:
    """Run the same tokens by `logits` with hooks attached, and compare.

    `reference` of a hook is what `plain` has for it, None where nothing does. What cannot be compared is
    named in the answer.
    """
    expected = {hook: x for hook in dict.fromkeys(hooks) if (x := reference(hook)) is not None}
    taken: dict[str, Tensor | None] = {}
    output: Tensor | None = None

    def take(hook: str, output: object) -> None:
        taken.setdefault(hook, plain.rows(output))
        if plain.logits is None and len(taken) == len(expected):
            raise _AllTaken

    with ExitStack() as attached, torch.inference_mode(), suppress(_AllTaken):
        for hook in expected:
            attached.callback(attach(hook, partial(take, hook)))
        if expected or plain.logits is not None:
            output = plain.rows(logits(plain.ids, plain.mask))
    if plain.logits is not None:
        expected[LOGITS], taken[LOGITS] = plain.logits, output
    by_hook = {name: _difference(taken.get(name), x) for name, x in expected.items()}
    differences = {name: value for name, value in by_hook.items() if value is not None}
    unchecked = tuple(name for name in (*dict.fromkeys(hooks), LOGITS) if name not in differences)
    return Agreement(differences, unchecked, plain.why)


def require_agreement(agreement: Agreement, dtype: torch.dtype, path: str, loader: str) -> None:
    """InputError, with the numbers, where something differs by more than the bound of its dtype."""
    bound = BOUNDS[dtype]
    wrong = {name: value for name, value in agreement.differences.items() if not value <= bound}
    if wrong:
        numbers = ", ".join(f"{value:.2g} at {name}" for name, value in wrong.items())
        raise InputError(
            f"model {path} computes something different under model.loader: {loader} (transformer-lens "
            f"{version('transformer-lens')}) than under transformers: on a few tokens the relative "
            f"difference is {numbers}, where {bound:.0e} is allowed in "
            f"{str(dtype).removeprefix('torch.')}: build the model in a function and set model.loader: "
            "torch_module"
        )


def _tokens(model: Any, longest: int | None) -> tuple[Tensor, Tensor]:
    """Ids int64 [B, T] that are spread over the vocabulary, and their mask."""
    config = model.config.get_text_config()
    width = min(LENGTHS[0], longest or LENGTHS[0])
    lengths = torch.tensor(LENGTHS).clamp(max=width)
    # a prime step spreads ids over the whole vocabulary, and none comes twice before it is used up
    ids = (torch.arange(len(LENGTHS) * width) * 7919 + 3) % config.vocab_size
    mask = (torch.arange(width) < lengths[:, None]).long()
    ids = torch.where(mask.bool(), ids.view(-1, width), 0)
    return ids.to(model.device), mask.to(model.device)


def _layers(path: str) -> set[int]:
    """Numbers in a module's path, or in a hook's name."""
    return {int(number) for number in re.findall(r"(?:^|\.)(\d{1,9})(?=\.|$)", path)}


def _difference(x: Tensor | None, plain: Tensor) -> float | None:
    """|x - plain| / |plain|; None where there is nothing of the same shape, or plain is not finite or is 0.

    Each token's vector counts by its own norm, at least the median one: a few tokens of huge norm do not hide
    the others.
    """
    if x is None or x.shape != plain.shape or not plain.isfinite().all():
        return None
    norms = plain.norm(dim=1)
    scale = norms.clamp(min=float(norms.median()))
    if not float(scale.min()) > 0:
        return None
    shares = (x - plain).norm(dim=1) / scale
    return float((shares**2).mean().sqrt())
