"""Planted activations: some features have their maxima at known rows, so that a search can be checked.

The last features, at most 8 and all of the last slot, take turns at every 512th row of the lake: the n-th
such row has feature n mod 8, with a value of 32 to 512 that none of its next 4,095 has. Other values are
below 9, so the strongest contexts of a planted feature are among these rows.
"""

from __future__ import annotations

import numpy as np

from schemas.values import F32, I64, U64, Bool

EVERY = 512
"""Rows of the lake of which one, the last, has a planted activation (where it is stored)."""

_MOST = 8
_LOWEST, _VALUES = 0x5000, 4096
"""32.0 as the bits of a float16, and how many values from there on are taken: up to 511.75."""


def planted_features(d_sae: int, slots: int) -> I64:
    """Numbers of the planted features, int64."""
    last_slot = d_sae - (slots - 1) * d_sae // slots
    return np.arange(d_sae - min(_MOST, last_slot), d_sae)


def is_planted(rows: U64) -> Bool:
    """Whether each row of the lake has a planted activation."""
    mask: Bool = rows % np.uint64(EVERY) == EVERY - 1
    return mask


def planted_at(rows: U64, features: I64) -> tuple[I64, F32]:
    """Feature and value of planted rows."""
    turn, number = np.divmod(rows.astype(np.int64) // EVERY, len(features))
    # whole steps of a float16 above 32: an odd factor goes through all 4096 before one comes again
    bits = _LOWEST + (turn * 2389 + number * 977) % _VALUES
    return features[number], bits.astype(np.uint16).view(np.float16).astype(np.float32)


def planted_rows(n_rows: int, feature: int, features: I64) -> tuple[I64, F32]:
    """Rows of a lake of `n_rows` in which `feature` is planted, and the values there; strongest first.

    Of equal values the one of the lower row comes first.
    """
    rows = np.arange(EVERY - 1, n_rows, EVERY, dtype=np.uint64)
    planted, values = planted_at(rows, features)
    own = planted == feature
    order = np.lexsort((rows[own], -values[own]))
    return rows[own][order].astype(np.int64), values[own][order]
