import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.statistics.l0 import PERCENTS, SUMMARY, combine_counts, l0_counts, l0_summary
from schemas.tables.tables import ROW_COUNTS

lengths = st.lists(st.integers(0, 40), max_size=50)


def counts_of(l0: list[int], counted: list[bool] | None = None) -> pl.DataFrame:
    indptr = np.append(0, np.cumsum(l0)).astype(np.int64)
    return l0_counts(indptr, np.array(counted if counted else [True] * len(l0), np.bool_))


def test_rows_that_do_not_count_are_left_out_and_empty_rows_are_not() -> None:
    counts = counts_of([0, 3, 0, 3, 7], [False, True, True, True, True])
    assert dict(counts.schema) == ROW_COUNTS
    assert counts.rows() == [(0, 1), (3, 2), (7, 1)]


@given(lengths, lengths)
def test_counts_of_two_shards_add_to_those_of_both(a: list[int], b: list[int]) -> None:
    merged = combine_counts([counts_of(a), counts_of(b)])
    assert merged.equals(counts_of(a + b))
    assert dict(merged.schema) == ROW_COUNTS


@given(lengths.filter(bool))
def test_the_summary_equals_numpy_over_the_rows(l0: list[int]) -> None:
    summary = l0_summary(counts_of(l0))
    assert dict(summary.schema) == SUMMARY
    row = summary.row(0, named=True)
    assert row["counted_rows"] == len(l0)
    assert row["nnz"] == sum(l0)
    assert row["mean"] == pytest.approx(np.mean(l0), rel=1e-14)
    assert row["var"] == pytest.approx(np.var(l0), rel=1e-12, abs=1e-14)
    for percent in PERCENTS:
        rank = max(1, -(-len(l0) * percent // 100))
        assert row[f"q{percent:02d}"] == sorted(l0)[rank - 1]


def test_no_counted_row_has_no_mean() -> None:
    row = l0_summary(counts_of([])).row(0, named=True)
    assert row == dict.fromkeys(SUMMARY) | {"counted_rows": 0, "nnz": 0}


def test_rows_beyond_32_bits_are_counted_exactly() -> None:
    many = pl.DataFrame({"l0": [0, 64], "rows": [2**40, 2**40]}, schema=ROW_COUNTS)
    row = l0_summary(combine_counts([many, many])).row(0, named=True)
    assert (row["counted_rows"], row["nnz"]) == (2**42, 2**41 * 64)
    assert (row["mean"], row["var"], row["q50"], row["q75"]) == (32, 1024, 0, 64)
