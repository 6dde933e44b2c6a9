"""Fingerprints of activations: the same for any order, another for any other activation."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.store.formats.fingerprint import fingerprints

ROWS = np.array([5, 9, 1 << 40, 2, 5], np.uint64)
VALUES = np.array([0.5, -1.25, 3.0, 0.5, 0.5], np.float32)
OFFSETS = np.array([0, 3, 5])


def test_the_sum_of_parts_is_the_whole_in_any_order():
    whole = fingerprints(OFFSETS, ROWS, VALUES)
    parts = [fingerprints(np.array([0, 1]), ROWS[i : i + 1], VALUES[i : i + 1])[0] for i in (2, 0, 1)]
    assert whole[0] == np.sum(parts, dtype=np.uint64)
    assert len(set(whole.tolist())) == 2


@pytest.mark.parametrize("change", ["row", "value", "sign", "swap"])
def test_any_other_activation_has_another(change):
    rows, values = ROWS.copy(), VALUES.copy()
    if change == "row":
        rows[1] += 1
    elif change == "value":
        values[1] = np.nextafter(values[1], np.float32(0))
    elif change == "sign":
        values[1] = -values[1]
    else:
        values[[0, 1]] = values[[1, 0]]
    changed = fingerprints(OFFSETS, rows, values) != fingerprints(OFFSETS, ROWS, VALUES)
    assert changed.tolist() == [True, False]


def test_nothing_has_none():
    assert fingerprints(np.zeros(1, np.int64), ROWS[:0], VALUES[:0]).tolist() == []
