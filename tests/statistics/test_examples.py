import functools

import numpy as np
import polars as pl
import pytest

import pipeline.statistics as statistics
from pipeline.statistics.examples import combine_top, quantile_examples, top_examples
from pipeline.statistics.histogram import bins_of
from schemas.tables import EXAMPLES
from tests.statistics.made import Made, as_one, made_shards, same_frame, shard_around


def state_of(shards: list[Made]) -> pl.DataFrame:
    return statistics.combine([statistics.partials(m.postings, m.tokens) for m in shards])


def one_feature(values: np.ndarray) -> list[Made]:
    return [shard_around(values.astype(np.float32).reshape(-1, 1), row_start=1000)]


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_top_rows_equal_a_sort_of_everything(k: int) -> None:
    shards = made_shards((60, 0, 300, 2), signed=True)
    whole = as_one(shards)
    merged = functools.reduce(
        functools.partial(combine_top, k=k), [top_examples(m.postings, m.tokens.row_start, k) for m in shards]
    )
    same_frame(merged, top_examples(whole.postings, 0, k))
    assert dict(merged.schema) == EXAMPLES
    for feature in range(12):
        values = whole.dense[:, feature]
        expected = sorted(np.flatnonzero(values), key=lambda row: (-abs(values[row]), row))[:k]
        mine = merged.filter(pl.col("feature") == feature)
        assert mine["row"].to_list() == [int(row) for row in expected]
        assert mine["activation"].to_list() == values[expected].tolist()
        assert mine["rank"].to_list() == list(range(len(expected)))


def test_ties_go_to_the_earlier_row_and_a_negative_activation_keeps_its_sign() -> None:
    made = one_feature(np.array([2, -3, 3, 0, 3]))[0]
    top = top_examples(made.postings, 1000, 3)
    assert top["row"].to_list() == [1001, 1002, 1004]
    assert top["activation"].to_list() == [-3, 3, 3]


def test_merging_top_rows_does_not_depend_on_order_or_grouping() -> None:
    a, b, c = (top_examples(m.postings, m.tokens.row_start, 4) for m in made_shards((40, 90, 50)))
    same_frame(combine_top(combine_top(a, b, 4), c, 4), combine_top(a, combine_top(c, b, 4), 4))


def test_quantile_examples_are_active_rows_at_most_so_many_an_interval() -> None:
    shards = made_shards((200, 900), signed=True)
    whole, examples = as_one(shards), quantile_examples(state_of(shards), per_interval=2)
    assert dict(examples.schema) == EXAMPLES
    assert examples["kind"].unique().to_list() == ["quantile"]
    assert whole.dense[examples["row"], examples["feature"]].tolist() == examples["activation"].to_list()
    groups = examples.group_by("feature", "interval").agg(pl.col("rank").sort())
    assert {tuple(rank) for rank in groups["rank"].to_list()} == {(0,), (0, 1)}


def test_an_example_stands_in_its_tenth_but_for_the_rows_of_its_bin() -> None:
    values = np.exp(np.random.default_rng(3).normal(size=3000)).astype(np.float32)
    examples = quantile_examples(state_of(one_feature(values)))
    assert examples["interval"].unique().to_list() == list(range(10))
    assert examples.height >= 18
    bins = bins_of(values)
    for row in examples.iter_rows(named=True):
        own_bin = np.mean(bins == bins_of(np.array([row["activation"]], np.float32)))
        share = np.mean(values < row["activation"])
        assert row["interval"] / 10 - own_bin <= share <= (row["interval"] + 1) / 10 + own_bin


def test_ten_rows_in_ten_bins_are_the_ten_tenths() -> None:
    examples = quantile_examples(state_of(one_feature(2.0 ** np.arange(10))))
    assert examples["interval"].to_list() == list(range(10))
    assert examples["row"].to_list() == list(range(1000, 1010))


def test_a_feature_that_fires_once_is_an_example_of_its_middle() -> None:
    examples = quantile_examples(state_of(one_feature(np.array([0, 1.99, 0]))))
    assert examples.select("interval", "rank", "row").rows() == [(5, 0, 1001)]


def test_no_activation_gives_no_example() -> None:
    assert dict(quantile_examples(statistics.empty_state()).schema) == EXAMPLES
    made = shard_around(np.zeros((4, 3), np.float32))
    assert dict(top_examples(made.postings, 0).schema) == EXAMPLES
    assert top_examples(made.postings, 0).height == 0
