"""Places that SAEs' files name by modules of Hugging Face (`model.layers.17.mlp.output`), and the hooks that
give the same numbers: TransformerLens' names, and the module's own path.

Each line of HOOKS was compared with the modules of a Gemma 3 (tests/saes/formats/test_hooks.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

HOOKS = {
    "": "hook_resid_post",
    "output": "hook_resid_post",
    "input": "hook_resid_pre",
    "self_attn.o_proj.input": "attn.hook_z",
    "self_attn.output": "attn.hook_out",
    "mlp.input": "mlp.hook_in",
    "mlp.output": "mlp.hook_out",
    "pre_feedforward_layernorm.input": "hook_resid_mid",
    "pre_feedforward_layernorm.output": "ln2.hook_out",
    "post_feedforward_layernorm.input": "mlp.hook_out",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
"""Point in a block, by Hugging Face's modules -> TransformerLens' hook in that block. An output of a norm has
its gain; TransformerLens' hook_mlp_in and hook_normalized have not."""

KEYS = (("hf_hook_point_in", "hf_hook_point_out"), ("hf_hook_name", "hf_hook_name_out"))
"""Names of the two points in the files of Gemma Scope 2, and in SAELens' metadata."""

_POINT = re.compile(r"(?:.*\.)?layers\.(\d+)(?:\.(.+))?")


class Places(NamedTuple):
    """Where an SAE reads and what it reconstructs, in one way of naming; None where the files do not say."""

    read: str | None
    target: str | None


def hook_at(point: Any) -> str | None:
    """TransformerLens' name of a point; None of one that is not known."""
    match = _POINT.fullmatch(point) if isinstance(point, str) else None
    hook = None if match is None else HOOKS.get(match[2] or "")
    return None if match is None or hook is None else f"blocks.{int(match[1])}.{hook}"


def points_of(files: Mapping[str, Any]) -> tuple[Any, Any]:
    """The two points that a configuration names, None where it names none."""
    for read, target in KEYS:
        if files.get(read) is not None:
            return files[read], files.get(target)
    return None, None


def by_module(files: Mapping[str, Any]) -> Places:
    """The two points as paths of modules whose output they are; None where one is not a module's output."""
    return Places(*(_module(point) for point in points_of(files)))


def places_of(about: Mapping[str, Any]) -> list[Places]:
    """The places of an SAE's metadata in each way that its files name them, TransformerLens' first."""
    return [Places(about["hook_name"], about["hook_name_out"]), by_module(about["extra"])]


def target_at(about: Mapping[str, Any], read: str) -> str | None:
    """What a transcoder that reads at `read` reconstructs, in the way of naming of `read`."""
    places = places_of(about)
    return next((place.target for place in places if place.read == read), places[0].target)


def _module(point: Any) -> str | None:
    match = _POINT.fullmatch(point) if isinstance(point, str) else None
    if match is None or (match[2] or "").endswith("input"):
        return None
    return str(point).removesuffix(".output")
