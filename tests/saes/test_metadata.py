"""What an SAE's files say about it: which of it moves numbers, and what cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.saes.metadata import ALWAYS_IN_RECIPE, IN_RECIPE_WHEN_SET, SaeMetadata, checked, finite
from schemas.errors import InputError

PLAIN = SaeMetadata("standard", 16, 64)

OTHERS = {
    "architecture": "jumprelu", "d_model": 17, "d_sae": 65, "apply_b_dec_to_input": False,
    "normalize_activations": "layer_norm", "k": 8, "rescale_acts_by_decoder_norm": True,
    "transcoder": True, "d_out": 24, "skip": True, "hook_head_index": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", [*ALWAYS_IN_RECIPE, *IN_RECIPE_WHEN_SET])
def test_every_field_that_moves_numbers_changes_the_recipe(name: str) -> None:
    changes: Any = {name: OTHERS[name]}
    assert replace(PLAIN, **changes).recipe() == PLAIN.recipe() | changes != PLAIN.recipe()


@pytest.mark.parametrize("size", [0, 1, True, 2.0, "128", (1 << 20) + 1])
def test_a_context_that_is_none_is_named_with_its_sae(size: Any) -> None:
    with pytest.raises(InputError, match=r"^SAE mine has context_size .*; it must be a whole number from 2"):
        checked(replace(PLAIN, context_size=size), "mine")


@pytest.mark.parametrize("size", [None, 2, 1 << 20])
def test_a_context_of_any_model_is_taken(size: int | None) -> None:
    assert checked(replace(PLAIN, context_size=size), "mine").context_size == size


def test_a_card_keeps_finite_real_numbers() -> None:
    figures = {"a": 1, "b": 0.5, "c": True, "d": float("nan"), "e": float("-inf"), "f": 10**400, "g": "1"}
    assert finite(figures | {"h": None, "i": 1j}) == {"a": 1.0, "b": 0.5}
