"""What an SAE's own files say about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.saes.module_points import places_of, target_at
from schemas.errors import InputError

NORMALIZATIONS = ("none", "expected_average_only_in", "layer_norm", "constant_norm_rescale")
"""Input normalisations that can be honoured (`pipeline.saes.encoding.normalization` says how)."""

ALWAYS_IN_RECIPE = (
    "architecture", "d_model", "d_sae", "apply_b_dec_to_input", "normalize_activations", "k",
    "rescale_acts_by_decoder_norm",
)  # fmt: skip
IN_RECIPE_WHEN_SET = ("transcoder", "d_out", "skip", "hook_head_index")

LONGEST_CONTEXT = 1 << 20
"""Tokens; more than any model reads."""


@dataclass(frozen=True)
class SaeMetadata:
    """An SAE as its files describe it.

    The fields down to `hook_head_index` decide the numbers. The rest is what the SAE was trained with, None
    where the files do not say.
    """

    architecture: str
    """standard, jumprelu, gated, topk, abstopk or groupmax; else the reference implementation's name."""
    d_model: int
    d_sae: int
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    k: int | None = None
    rescale_acts_by_decoder_norm: bool = False
    transcoder: bool = False
    """Whether it reads at `hook_name` and reconstructs what is at `hook_name_out`."""
    d_out: int | None = None
    """Width of a transcoder's reconstruction where it is not d_model."""
    skip: bool = False
    """Whether W_skip @ x is added to the reconstruction."""
    hook_head_index: int | None = None
    """The one attention head that it reads, of x [.., heads, d_model]."""
    format: str = "saelens"
    hook_name: str | None = None
    hook_name_out: str | None = None
    prepend_bos: bool | None = None
    context_size: int | None = None
    seqpos_slice: tuple[int | None, ...] | None = None
    """Positions of a context that it was trained on, as the arguments of Python's slice()."""
    model_name: str | None = None
    model_class_name: str | None = None
    """HookedTransformer, or AutoModelForCausalLM for a model with Hugging Face's own module names."""
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """SAELens' model_from_pretrained_kwargs: weight processing (fold_ln, ...) among them."""
    card: Mapping[str, float] = field(default_factory=dict)
    """Figures that its publishers give: l0, explained_variance, mse, cosine, loss_recovered, dead."""
    notes: tuple[str, ...] = ()
    """What its reader had to decide or to fold, a sentence each."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Everything else that the files say."""

    def reads_at(self, hook: str | None) -> bool:
        """Whether its files say, in one way of naming, that it reads at this hook."""
        return hook is not None and any(place.read == hook for place in places_of(vars(self)))

    def target_at(self, hook: str) -> str | None:
        """Where a transcoder's target is when it reads at `hook`, in the same way of naming."""
        return target_at(vars(self), hook)

    @property
    def width_out(self) -> int:
        """Width of the reconstruction."""
        return self.d_out or self.d_model

    def recipe(self) -> dict[str, Any]:
        """The part that changes numbers, JSON-able: goes into the SAE's digest along with the weights."""
        content = asdict(self)
        later = {
            name for name in IN_RECIPE_WHEN_SET if content[name] is not None and content[name] is not False
        }
        return {name: content[name] for name in (*ALWAYS_IN_RECIPE, *sorted(later))}


class Described:
    """What every encoder says about itself by its metadata."""

    metadata: SaeMetadata

    @property
    def d_model(self) -> int:
        """Width of x."""
        return self.metadata.d_model

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.metadata.d_sae

    @property
    def hook_name(self) -> str | None:
        """Where the SAE was trained to read x, if its files say so."""
        return self.metadata.hook_name


NO_SAE = SaeMetadata("none", 0, 0, format="none")
"""Of a site that stores x alone."""


def checked(metadata: SaeMetadata, spec: str) -> SaeMetadata:
    """The metadata, when its values are of the kinds that they should be; else InputError."""
    for name in ("hook_name", "hook_name_out", "model_name", "model_class_name"):
        value = getattr(metadata, name)
        if value is not None and not isinstance(value, str):
            raise InputError(f"SAE {spec} has {name} {value!r}; it must be a text")
    size = metadata.context_size
    whole = isinstance(size, int) and not isinstance(size, bool)
    if size is not None and not (whole and 2 <= size <= LONGEST_CONTEXT):
        raise InputError(
            f"SAE {spec} has context_size {size!r}; it must be a whole number from 2 to {LONGEST_CONTEXT}"
        )
    if not isinstance(metadata.prepend_bos, bool | None):
        raise InputError(f"SAE {spec} has prepend_bos {metadata.prepend_bos!r}; it must be true or false")
    if not isinstance(metadata.model_kwargs, Mapping):
        raise InputError(f"SAE {spec} has model options {metadata.model_kwargs!r}; they must have names")
    if metadata.k is not None and metadata.k > metadata.d_sae:
        raise InputError(f"SAE {spec} has k {metadata.k}, more than its {metadata.d_sae} features")
    return metadata


def finite(figures: Mapping[str, Any]) -> dict[str, float]:
    """For a card: those of the figures that are finite real numbers."""
    numbers = {}
    for name, value in figures.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                continue
            if math.isfinite(number):
                numbers[name] = number
    return numbers
