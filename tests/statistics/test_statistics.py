import dataclasses

import numpy as np
import polars as pl
import polars.selectors as cs
import pytest

import pipeline.statistics as statistics
from schemas.errors import InputError
from schemas.tables.tables import ROW_COUNTS
from schemas.values import Postings, Totals
from tests.fixtures.tokens import as_one, feature_table, made_shards, same_frame, table_of, totals_of
from tests.statistics.conformance import SIZES


def test_the_table_has_every_feature_every_column_and_its_denominators() -> None:
    shards = made_shards(SIZES)
    table, totals = table_of(shards), totals_of(shards)
    assert dict(table.schema) == statistics.feature_schema()
    assert table["feature"].to_list() == list(range(12))
    for name in ("rows", "counted_rows", "contexts", "documents"):
        assert table[name].to_list() == [getattr(totals, name)] * 12
    assert table.filter(pl.col("frequency") * pl.col("counted_rows") - pl.col("n_active") > 1e-9).is_empty()


def test_rows_that_do_not_count_are_in_no_denominator_but_their_own() -> None:
    shards = made_shards(SIZES)
    table = table_of(shards)
    counted = sum(int(made.tokens.counted.sum()) for made in shards)
    assert counted < sum(SIZES)
    assert table["rows"][0] == sum(SIZES)
    assert table["counted_rows"][0] == counted


def test_counts_of_uneven_shards_equal_those_of_one_pass() -> None:
    shards = made_shards(SIZES)
    exact = cs.integer() | cs.list() | cs.matches("^q\\d\\d_|_activation$|frequency$")
    a, b = (table_of(made).select(exact) for made in (shards, [as_one(shards)]))
    same_frame(a, b)


def test_no_number_depends_on_the_block_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = made_shards((300,))[0]
    at_once = statistics.partials(made.postings, made.tokens)
    for block in (1, 100, 137):
        monkeypatch.setattr(statistics, "BLOCK_NNZ", block)
        same_frame(statistics.partials(made.postings, made.tokens), at_once)


def test_a_shard_without_activations_has_an_empty_partial_that_changes_nothing() -> None:
    empty, full = made_shards((0, 80))
    partial = statistics.partials(empty.postings, empty.tokens)
    same_frame(partial, statistics.empty_state())
    state = statistics.partials(full.postings, full.tokens)
    same_frame(statistics.combine([partial, state]), state)


def test_a_store_of_special_tokens_only_has_a_table_of_nulls() -> None:
    counts = pl.DataFrame(schema=ROW_COUNTS)
    table = feature_table(statistics.empty_state(), Totals(9, 0, 0, 0), 3, counts)
    assert dict(table.schema) == statistics.feature_schema()
    assert table["frequency"].to_list() == table["mean_all"].to_list() == [None] * 3
    assert table["rows"].to_list() == [9] * 3


def test_feature_and_row_numbers_beyond_16_and_32_bits_stay_whole() -> None:
    made = made_shards((5,))[0]
    postings = Postings(
        np.array([70_001, 131_071], np.uint32),
        np.array([0, 1, 3]),
        np.flatnonzero(made.tokens.counted)[[0, 0, 1]],
        np.array([1, 2, 3], np.float32),
    )
    tokens = dataclasses.replace(made.tokens, row_start=2**40)
    state = statistics.combine([statistics.empty_state(), statistics.partials(postings, tokens)])
    assert state["feature"].to_list() == [70_001, 131_071]
    assert sorted(state["sample_rows"].to_list()[1]) == (postings.rows[1:] + 2**40).tolist()


def test_row_counts_that_disagree_with_partials_are_an_error_that_names_both() -> None:
    shards = made_shards((60,))
    state = statistics.partials(shards[0].postings, shards[0].tokens)
    counts = shards[0].row_counts
    with pytest.raises(InputError, match=r"partials hold \d+ activations .* verify"):
        feature_table(state.head(3), shards[0].totals, 12, counts)
    with pytest.raises(InputError, match="feature 10, the SAE has 5"):
        feature_table(state, shards[0].totals, 5, counts)


def test_an_unknown_statistic_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(InputError, match="no statistic 'mode'; known: moments, coverage"):
        statistics.load_statistic("mode")


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_an_activation_that_no_store_holds_is_refused(value: float) -> None:
    made = made_shards((30,))[0]
    p = made.postings
    broken = Postings(p.features, p.offsets, p.rows, np.append(np.float32(value), p.values[1:]))
    with pytest.raises(AssertionError):
        statistics.partials(broken, made.tokens)


def test_an_activation_in_a_row_that_does_not_count_is_refused() -> None:
    made = made_shards((40,))[0]
    made.tokens.counted[:] = False
    with pytest.raises(AssertionError, match="not counted"):
        statistics.partials(made.postings, made.tokens)
