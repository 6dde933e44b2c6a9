"""What directions in the residual stream do to the next token, if nothing came between: direct unembedding.

n directions of a block, D width of the residual stream, V vocabulary of the model. A block holds LOGITS
numbers: 128 MiB, and about four times as much while it is worked on.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.models import Model
from pipeline.plans.reopen import PlannedUse, cached_per_process, open_model
from schemas.values import F32, F64, I32

LOGITS = 1 << 25
"""Logits in memory at once."""
BINS = 48
"""Of the histogram of a direction's effects over the vocabulary."""


class Directions(NamedTuple):
    """Vectors float32 [n, D] to unembed, and directions [n, D] whose plain effects are wanted, if any are."""

    vectors: F32
    effects: F32 | None = None


class Extremes(NamedTuple):
    """The k highest and the k lowest tokens of each row, int32 [n, k], and their values float32 [n, k]."""

    top: I32
    top_values: F32
    bottom: I32
    bottom_values: F32


class Histograms(NamedTuple):
    """Tokens of each row by value: counts int32 [n, BINS] of even bins from `low` to `high`, float32 [n]."""

    low: F32
    high: F32
    counts: I32


class SoftmaxStats(NamedTuple):
    """Of each row's softmax, float64 [n]: the entropy in bits and the largest probability."""

    entropy_bits: F64
    max_probability: F64


class Unembedded(NamedTuple):
    """What a block gave: of the logits, and of the plain effects (None where they were not to be had)."""

    softmax: SoftmaxStats
    logits: Extremes | None
    effects: Extremes | None
    histograms: Histograms | None = None
    """Of the plain effects."""


class Reading(NamedTuple):
    """How to read logits: the model, tokens listed at each end, and how many tokens have a text."""

    use: PlannedUse
    k: int
    tokens: int


def rows_of_a_block(vocabulary: int) -> int:
    """Directions that are unembedded at once."""
    return max(1, LOGITS // vocabulary)


def vocabulary_of(use: PlannedUse, width: int) -> int:
    """Tokens of the model, which is loaded; InputError where it cannot unembed vectors [n, width]."""
    return _model(use).unembed(torch.zeros(1, width)).shape[1]


def read(reading: Reading, directions: Directions) -> Unembedded:
    """Unembed a block of directions."""
    model = _model(reading.use)
    logits = model.unembed(torch.from_numpy(directions.vectors))
    softmax = softmax_stats(logits)
    if directions.effects is None:
        return Unembedded(softmax, None, None)
    listed = extremes(logits[:, : reading.tokens], reading.k)
    del logits
    effects = model.logit_effects(torch.from_numpy(directions.effects))
    if effects is None:
        return Unembedded(softmax, listed, None)
    known = effects[:, : reading.tokens]
    return Unembedded(softmax, listed, extremes(known, reading.k), histograms(known))


def softmax_stats(logits: Tensor) -> SoftmaxStats:
    """Entropy and largest probability of softmax(logits), logits float32 [n, V]; sums are float64."""
    log_p = logits.log_softmax(1)
    # p is 0 where log p is -inf, and 0 * -inf would be NaN
    entropy = -(log_p.exp() * log_p.clamp(min=-1e4)).sum(1, dtype=torch.float64) / math.log(2)
    return SoftmaxStats(entropy.cpu().numpy(), log_p.amax(1).double().exp().cpu().numpy())


def extremes(values: Tensor, k: int) -> Extremes:
    """The highest (highest first) and lowest (lowest first) of each row, equal ones by their number."""
    k = min(k, values.shape[1])
    return Extremes(*_first(values, k, largest=True), *_first(values, k, largest=False))


def histograms(values: Tensor) -> Histograms:
    """How many values [n, V] of each row lie in each bin; a value on an edge is in the bin above it."""
    low, high = values.aminmax(dim=1)
    # rows whose values are all equal have them in the first bin
    scale = BINS / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
    counts = torch.stack(
        [
            # a row at a time: the whole block's places would take twice the memory of its values
            torch.bincount(((row - start) * per_bin).long().clamp(0, BINS - 1), minlength=BINS)
            for row, start, per_bin in zip(values, low, scale, strict=True)
        ]
    )
    return Histograms(low.cpu().numpy(), high.cpu().numpy(), counts.cpu().numpy().astype(np.int32))


def _first(values: Tensor, k: int, *, largest: bool) -> tuple[I32, F32]:
    """Places and values of the largest, or smallest, k of each row."""
    extremes = values.topk(k, dim=1, largest=largest)
    place, size = extremes.indices.cpu().numpy(), extremes.values.cpu().numpy()
    # devices order equal values differently: here the lower number comes first
    order = np.lexsort((place, -size if largest else size), axis=1)
    return (
        np.take_along_axis(place, order, axis=1).astype(np.int32),
        np.take_along_axis(size, order, axis=1),
    )


def _model(use: PlannedUse) -> Model:
    """The model, loaded once in a process."""
    return cached_per_process(("logits", *use.key), lambda: open_model(use, []))
