"""Runs of neighbouring items within a limit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.statistics.features.ragged import runs_within


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 12), st.integers(0, 5))
def test_runs_cover_all_items_in_order_and_are_as_long_as_the_limit_allows(sizes, most, start):
    ends = start + np.append(0, np.cumsum(np.array(sizes, np.int64)))
    runs = list(runs_within(ends, most))
    assert [item for run in runs for item in run] == list(range(len(sizes)))
    for run in runs:
        total = sum(sizes[item] for item in run)
        assert total <= most or len(run) == 1
        if run.stop < len(sizes):
            assert total + sizes[run.stop] > most


@pytest.mark.parametrize("ends", [np.zeros(1, np.int64), np.array([7])])
def test_without_items_there_are_no_runs(ends):
    assert list(runs_within(ends, 3)) == []
