"""What an SAE's own files say about it, read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NORMALIZATIONS = ("none", "expected_average_only_in", "layer_norm", "constant_norm_rescale")
"""Input normalisations that can be honoured (`pipeline.saes.normalization` says how)."""


@dataclass(frozen=True)
class SaeMetadata:
    """An SAE as its files describe it.

    `architecture`, `d_model`, `d_sae` and the four fields after them decide the numbers; the rest is what the
    SAE was trained with, None where the files do not say: `hook_name`, `prepend_bos`, `context_size`,
    `model_name`, `model_kwargs` (SAELens' model_from_pretrained_kwargs) and `extra`, everything else they
    tell.
    """

    architecture: str
    d_model: int
    d_sae: int
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    k: int | None = None
    rescale_acts_by_decoder_norm: bool = False
    hook_name: str | None = None
    prepend_bos: bool | None = None
    context_size: int | None = None
    model_name: str | None = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self) -> dict[str, Any]:
        """The part that moves numbers, JSON-able: goes into the SAE's digest beside the weights."""
        return {
            "architecture": self.architecture,
            "d_model": self.d_model,
            "d_sae": self.d_sae,
            "apply_b_dec_to_input": self.apply_b_dec_to_input,
            "normalize_activations": self.normalize_activations,
            "k": self.k,
            "rescale_acts_by_decoder_norm": self.rescale_acts_by_decoder_norm,
        }
