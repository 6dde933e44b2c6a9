from functools import partial

import numpy as np
import polars as pl
import pytest

import pipeline.statistics as statistics
from pipeline.statistics.examples import examples as module
from pipeline.statistics.examples.examples import Strongest, quantile_examples
from pipeline.statistics.features.histogram import bins_of, reached
from schemas.tables.tables import EXAMPLES
from tests.fixtures.tokens import Made, as_one, made_shards, shard_around


def state_of(shards: list[Made]) -> pl.DataFrame:
    return statistics.combine([statistics.partials(m.postings, m.tokens) for m in shards])


def one_feature(values: np.ndarray) -> list[Made]:
    return [shard_around(values.astype(np.float32).reshape(-1, 1), row_start=1000)]


def strongest(shards: list[Made], k: int = 20, dtype: type = np.float16) -> pl.DataFrame:
    """The strongest rows, looked for shard by shard."""
    looking = Strongest(state_of(shards), dtype, k)
    for made in shards:
        p, start = made.postings, made.tokens.row_start
        if len(p.features):
            low, high = (f.reduceat(p.values, p.offsets[:-1]) for f in (np.minimum, np.maximum))
            if looking.may_hold(p.features, low, high):
                looking.update(p.features, np.diff(p.offsets), p.values, lambda rows=p.rows + start: rows)
    return looking.table()


def brute_force(shards: list[Made], k: int) -> list[tuple[int, int, int, float]]:
    """Feature, rank, row and activation of the strongest rows by a sort of everything."""
    dense = as_one(shards).dense
    result = []
    for feature in range(dense.shape[1]):
        values = dense[:, feature]
        rows = sorted(np.flatnonzero(values), key=lambda row: (-abs(values[row]), row))[:k]
        result += [(feature, rank, int(row), float(values[row])) for rank, row in enumerate(rows)]
    return result


@pytest.mark.parametrize("k", [1, 5, 1000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("signed", [False, True])
def test_top_rows_equal_a_sort_of_everything(k: int, dtype: type, signed: bool) -> None:
    shards = made_shards((60, 0, 300, 2), signed=signed)
    result = strongest(shards, k, dtype)
    assert dict(result.schema) == EXAMPLES
    assert result.select("feature", "rank", "row", "activation").rows() == brute_force(shards, k)
    assert result.select(pl.col("kind", "interval").unique()).row(0) == ("top", 0)


@pytest.mark.parametrize("k", [1, 3, 1000])
@pytest.mark.parametrize("candidates", [-1000, 1 << 21])
def test_one_row_of_each_document_equals_a_sort_of_everything(
    k: int, candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CANDIDATES", candidates)
    shards = made_shards((60, 0, 300, 2), signed=True)
    whole = as_one(shards)
    looking = Strongest(
        pl.DataFrame({"feature": range(whole.dense.shape[1])}), np.float16, k, per_document=True
    )
    for made in shards:
        p, start = made.postings, made.tokens.row_start
        document = partial(lambda rows, made: made.tokens.document[rows - made.tokens.row_start], made=made)
        looking.update(p.features, np.diff(p.offsets), p.values, lambda rows=p.rows + start: rows, document)
    expected = []
    for feature in range(whole.dense.shape[1]):
        best: dict[int, int] = {}
        values = whole.dense[:, feature]
        for row in sorted(np.flatnonzero(values), key=lambda row: (-abs(values[row]), row)):
            best.setdefault(int(whole.tokens.document[row]), int(row))
        rows = list(best.values())[:k]
        expected += [(feature, rank, row, float(values[row])) for rank, row in enumerate(rows)]
    result = looking.table()
    assert set(result["kind"]) == {"top_document"}
    assert result.select("feature", "rank", "row", "activation").rows() == expected


def test_ties_go_to_the_earlier_row_and_a_negative_activation_keeps_its_sign() -> None:
    top = strongest(one_feature(np.array([2, -3, 3, 0, 3])), 3)
    assert top["row"].to_list() == [1001, 1002, 1004]
    assert top["activation"].to_list() == [-3, 3, 3]


@pytest.mark.parametrize("values", [1.0, 65504.0, 6e-8, -1.0])
def test_a_feature_of_equal_activations_is_pruned_as_it_goes(
    monkeypatch: pytest.MonkeyPatch, values: float
) -> None:
    monkeypatch.setattr(module, "_CANDIDATES", 0)
    shards = [shard_around(np.full((90, 1), values, np.float16).astype(np.float32), 90 * n) for n in range(5)]
    assert strongest(shards, 4)["row"].to_list() == [0, 1, 2, 3]
    mixed = made_shards((50,) * 9, seed=3, signed=True)
    result = strongest(mixed, 3)
    assert result.select("feature", "rank", "row", "activation").rows() == brute_force(mixed, 3)


@pytest.mark.parametrize("signed", [False, True])
def test_the_bound_is_the_highest_edge_that_enough_activations_reach(signed: bool) -> None:
    shards = made_shards((400,), signed=signed)
    dense, state = np.abs(as_one(shards).dense), state_of(shards)
    for k in (1, 20, 70):
        for feature, bound in zip(state["feature"].to_list(), reached(state, k).tolist(), strict=True):
            above = np.sort(dense[:, feature])[::-1]
            if np.count_nonzero(above) < k:
                assert bound == 0
            else:
                assert bound <= above[k - 1] < bound * 1.1251


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
    assert dict(strongest([shard_around(np.zeros((4, 3), np.float32))]).schema) == EXAMPLES
