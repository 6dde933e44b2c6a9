"""Architectures that we encode ourselves: name -> the function that builds its rule, its arrays [d_sae]."""

from __future__ import annotations

ARCHITECTURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "standard": ("pipeline.saes.encoding.threshold:standard", ("b_enc",)),
    "jumprelu": ("pipeline.saes.encoding.threshold:jumprelu", ("b_enc", "threshold")),
    "gated": ("pipeline.saes.encoding.threshold:gated", ("b_gate", "b_mag", "r_mag")),
    "topk": ("pipeline.saes.encoding.topk:topk", ("b_enc",)),
    "abstopk": ("pipeline.saes.encoding.topk:abstopk", ("b_enc",)),
    "groupmax": ("pipeline.saes.encoding.groupmax:groupmax", ("b_enc",)),
}
"""BatchTopK and matryoshka SAEs are jumprelu once trained (their threshold is a tensor); see the readers."""


def array_names(architecture: str, *, skip: bool = False) -> tuple[str, ...]:
    """Names of all arrays of an SAE of this architecture."""
    return ("W_enc", "W_dec", "b_dec", *ARCHITECTURES[architecture][1], *(("W_skip",) if skip else ()))
