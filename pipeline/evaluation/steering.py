"""Steering, features changed while a model writes: what is given, and what comes of it.

Importing this does not import torch; `intervention` makes the changes, `generation` writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from schemas.errors import InputError
from schemas.values import I32

if TYPE_CHECKING:
    from pipeline.store import FeatureStore

MOST_SEED = 2**63 - 1

Operation = Literal["set", "add", "scale", "ablate"]
"""What becomes of an activation f: the value, f + value, f * value, 0."""


class Change(NamedTuple):
    """One feature's change, in every row concerned, whether the feature fires there or not.

    `value` is in units of activations, of `scale` a factor; `ablate` has none.
    """

    feature: int
    operation: Operation
    value: float = 0.0


Changes = Mapping[int, float] | Iterable[Change]
"""Changes one after another; a mapping sets the activation of each feature to its value."""


def changes_of(changes: Changes) -> tuple[Change, ...]:
    """The changes as a tuple; InputError where there is none."""
    if isinstance(changes, Mapping):
        changes = (Change(feature, "set", value) for feature, value in changes.items())
    listed = tuple(changes)
    if not listed:
        raise InputError("no feature is changed: name at least one, such as {184: 20.0}")
    return listed


class Sampling(NamedTuple):
    """How tokens are chosen.

    `temperature` 0: the likeliest token; else a token of probability softmax(logits / temperature), of all
    or of the `top_k` likeliest. `n_tokens`: the most that are written; EOS, or the lake's separator, ends
    a text before.
    """

    n_tokens: int = 40
    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0

    def check(self) -> None:
        """InputError for numbers that are not possible."""
        n_tokens, temperature, top_k, seed = self
        if n_tokens < 1:
            raise InputError(f"n_tokens {n_tokens} is not possible: generate at least 1 token")
        if not (math.isfinite(temperature) and temperature >= 0):
            raise InputError(f"temperature {temperature} is not possible: give a number from 0")
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k {top_k} is not possible: keep at least 1 token, or give none")
        if not 0 <= seed <= MOST_SEED:
            raise InputError(f"seed {seed} is not a whole number from 0 to {MOST_SEED}")


@dataclass(frozen=True)
class Steered:
    """A prompt and its two continuations, `plain` and `steered`.

    Token ids are int32, BOS not among them; an EOS or separator that ended a text is its last.
    """

    prompt: str
    prompt_ids: I32
    plain: str
    plain_ids: I32
    steered: str
    steered_ids: I32


def require_text(store: FeatureStore, site: str) -> None:
    """InputError that says why no text can be continued at the site, as far as the store itself tells."""
    plan = store.plans[store.require_features(site).pass_name]
    if store.lake.inputs is not None:
        raise InputError(
            f"site {site!r} reads vectors (images, or a dictionary's samples), not text: there is nothing to "
            "write. For images, `latentlake steer` decodes changed features"
        )
    if plan.model_loader == "synthetic":
        raise InputError(f"site {site!r} is synthetic: there is no model that could write")
