"""Which feature of an SAE is which true one, by the cosine of directions.

Shapes: S features of the SAE, F true ones, D entries. Two answers, named apart: the *literal* order of
`find_best_feature_ordering` in sae-lens 6.28 (synthetic/plotting.py), where several features may stand for
one true feature, and the optimal one-to-one assignment, whose mean |cosine| is the mean correlation
coefficient of X. Song et al., "Mechanistic Interpretability Should Prioritize Feature Consistency in SAEs"
(2025, arXiv 2505.20254).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from jobs.tables.pairs.assignment import assign_all, fits
from schemas.errors import InputError
from schemas.values import F32, I64

DECIMALS = 2
"""Cosines are rounded to so many before orders of several SAEs are compared, as sae-lens does."""


class Cosines(NamedTuple):
    """Of encoder and decoder directions with the true ones, float32 [S, F]; 0 where there is no direction."""

    encoder: F32
    decoder: F32


class Assigned(NamedTuple):
    """One-to-one pairs: features of the SAE, ascending, and their true ones, int64 [n]."""

    feature: I64
    true_feature: I64


def cosines_with(rows: F32, vectors: F32) -> F32:
    """Cosines of rows [S, D] with true directions [F, D]; InputError where widths differ, or for too many."""
    if rows.shape[1] != vectors.shape[1]:
        raise InputError(
            f"the SAE's directions have {rows.shape[1]:,} entries, but those of the truth have "
            f"{vectors.shape[1]:,}: give the truth that the store's corpus was drawn from"
        )
    if not fits(len(rows), len(vectors)):
        raise InputError(
            f"{len(rows):,} features and {len(vectors):,} true ones have more cosines than fit into memory "
            "(8,192 x 8,192 do)"
        )
    # on one thread, so that the bits do not depend on how many there are
    with threadpool_limits(1):
        cosine = _units(rows) @ _units(vectors).T
    clipped: F32 = np.clip(cosine, -1, 1).astype(np.float32)
    return clipped


def _units(rows: F32) -> F32:
    norm = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    units: F32 = np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 0, casting="same_kind")
    return units


def literal_order(decoder: F32) -> I64:
    """Features of the SAE by the true feature of largest |cosine|, equal ones by their number; int64 [S]."""
    order: I64 = np.argsort(nearest(decoder), kind="stable").astype(np.int64)
    return order


def literal_score(decoder: F32, order: I64) -> float:
    """Mean of the rounded cosines of the first features in this order with true features 0, 1, 2 …"""
    n = min(decoder.shape)
    return float(np.round(decoder, DECIMALS)[order[:n], np.arange(n)].mean(dtype=np.float64))


def best_order(decoders: Sequence[F32]) -> tuple[int, I64]:
    """The SAE whose literal order has the highest score (the first of equal ones), and that order."""
    orders = [literal_order(decoder) for decoder in decoders]
    scores = [literal_score(decoder, order) for decoder, order in zip(decoders, orders, strict=True)]
    best = int(np.argmax(scores))
    return best, orders[best]


def assigned(decoder: F32) -> Assigned:
    """The assignment of largest total |cosine|; a pair of cosine 0 is none."""
    return Assigned(*assign_all(np.abs(decoder)))


def mcc(decoder: F32, match: Assigned) -> float:
    """The mean |cosine| of the assignment; a pair of cosine 0, which is none, counts as in sae-lens."""
    return float(np.abs(decoder[match], dtype=np.float64).sum() / min(decoder.shape))


def nearest(decoder: F32) -> I64:
    """The true feature of largest |cosine| of each feature, the first of equal ones, int64 [S]."""
    true_feature: I64 = np.abs(decoder).argmax(axis=1).astype(np.int64)
    return true_feature


def uniqueness(decoder: F32) -> float:
    """True features that are the nearest of some feature of the SAE, per feature (as in sae-lens' evals)."""
    return len(np.unique(nearest(decoder))) / len(decoder)
