"""What a synthetic SAE is: `synthetic:d_sae=65536,l0=62.5,exponent=1.0,burst=0.5,seed=0`."""

from __future__ import annotations

import difflib
import math

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.errors import InputError
from schemas.names import SYNTHETIC

VERSION = 1
"""Of the generator: another one draws other features from the same recipe."""


class Recipe(BaseModel):
    """The numbers of a synthetic SAE; equal ones give equal features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    d_sae: int = Field(ge=4, le=1 << 20, description="Features.")
    l0: float = Field(ge=0.25, le=4096, description="Mean number of active features in a row.")
    exponent: float = Field(
        1.0, ge=0, le=4, description="Frequency is proportional to rank ** -exponent; 0: all equal."
    )
    burst: float = Field(
        0.5, ge=0, le=1, description="Share of the activations that go to features a document favours."
    )
    seed: int = Field(0, ge=0, lt=1 << 63, description="A different seed gives different features.")

    @property
    def slots(self) -> int:
        """Parts that the features fall into, a power of two: a row has at most one active feature of each."""
        # four times the mean, which no row exceeds; a power of two makes a row's phase a few of its bits
        return 1 << (math.ceil(4 * self.l0) - 1).bit_length()


def parse(spec: str) -> Recipe:
    """The recipe that `spec` spells; InputError names the key or the value that is wrong."""
    known, content = list(Recipe.model_fields), {}
    for part in filter(None, spec.removeprefix(SYNTHETIC).split(",")):
        key, separator, value = (piece.strip() for piece in part.partition("="))
        if key not in known or not separator or key in content:
            raise InputError(f"SAE {spec}: {_wrong(part, key, known, key in content)}")
        content[key] = value
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        given = first["input"]
        problem = "is missing" if first["type"] == "missing" else f"is {given!r}: {first['msg'].lower()}"
        raise InputError(f"SAE {spec}: {first['loc'][0]} {problem}") from None
    if recipe.slots > recipe.d_sae:
        raise InputError(f"SAE {spec}: l0={recipe.l0:g} needs d_sae={recipe.slots} at least")
    return recipe


def _wrong(part: str, key: str, known: list[str], twice: bool) -> str:
    """What is wrong about one part of a spec."""
    if twice:
        return f"{key} is given twice"
    if key in known:
        return f"{part.strip()!r} is not {key}=VALUE"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"unknown key {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")
