"""What every statistic must do; its test inherits this and adds values against brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import polars.selectors as cs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.statistics import STATISTICS, load_statistic
from pipeline.statistics.features.statistic import FEATURE, Statistic
from schemas.values import Totals
from tests.fixtures.tokens import (
    as_one,
    close_frame,
    fold,
    made_shards,
    same_bits,
    same_frame,
    shard_around,
    totals_of,
)

SIZES = (40, 1, 160, 0, 23)
D_SAE = 12
NEVER, ONCE = D_SAE - 1, D_SAE - 2


class StatisticConformance:
    """Set `name`, and the table's row of a feature that never fires, and of one that fires once, with 1.5."""

    name: str
    never: ClassVar[dict[str, Any]]
    once: ClassVar[dict[str, Any]]

    @pytest.fixture
    def statistic(self) -> Statistic:
        return load_statistic(self.name)

    def test_it_is_registered_under_its_name(self, statistic: Statistic) -> None:
        assert self.name in STATISTICS
        assert statistic.name == self.name

    def test_partial_and_merge_and_table_have_the_columns_they_declare(self, statistic: Statistic) -> None:
        shards = made_shards(SIZES)
        partial = statistic.partial(shards[0].postings, shards[0].tokens)
        state = fold(statistic, shards)
        assert dict(partial.schema) == dict(state.schema) == FEATURE | statistic.state
        assert dict(statistic.finalize(state, totals_of(shards), D_SAE).schema) == FEATURE | statistic.table

    def test_partial_has_only_features_that_fired(self, statistic: Statistic) -> None:
        made = made_shards((30,))[0]
        fired = np.flatnonzero(made.dense.any(axis=0))
        assert statistic.partial(made.postings, made.tokens)["feature"].to_list() == fired.tolist()

    def test_an_empty_shard_and_one_without_activations_have_no_partial(self, statistic: Statistic) -> None:
        for rows in (0, 9):
            made = shard_around(np.zeros((rows, D_SAE), np.float32))
            partial = statistic.partial(made.postings, made.tokens)
            assert partial.height == 0
            assert dict(partial.schema) == FEATURE | statistic.state

    @pytest.mark.parametrize("signed", [False, True])
    def test_an_empty_state_changes_no_bit(self, statistic: Statistic, signed: bool) -> None:
        made = made_shards((60,), signed=signed)[0]
        partial = statistic.partial(made.postings, made.tokens)
        empty = pl.DataFrame(schema=FEATURE | statistic.state)
        same_frame(statistic.combine([empty, partial]), partial)
        same_frame(statistic.combine([partial, empty]), partial)
        same_frame(statistic.combine([empty, empty]), empty)
        same_frame(statistic.combine([empty]), empty)

    @pytest.mark.parametrize("signed", [False, True])
    def test_uneven_shards_give_what_one_pass_gives(self, statistic: Statistic, signed: bool) -> None:
        shards = made_shards(SIZES, signed=signed)
        whole = as_one(shards)
        close_frame(fold(statistic, shards), statistic.partial(whole.postings, whole.tokens))

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(
        sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
        cut=st.integers(0, 6),
        seed=st.integers(0, 99),
        signed=st.booleans(),
    )
    def test_merging_is_associative(self, sizes: list[int], cut: int, seed: int, signed: bool) -> None:
        statistic = load_statistic(self.name)
        shards = made_shards(sizes, seed=seed, signed=signed)
        left, right = shards[:cut], shards[cut:]
        grouped = [fold(statistic, part) for part in (left, right) if part]
        close_frame(statistic.combine(grouped), fold(statistic, shards))

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
    @given(
        sizes=st.lists(st.integers(0, 60), min_size=2, max_size=7),
        cuts=st.lists(st.integers(0, 7), max_size=4),
        seed=st.integers(0, 99),
        signed=st.booleans(),
    )
    def test_merging_many_at_once_is_the_left_fold_to_the_bit(
        self, sizes: list[int], cuts: list[int], seed: int, signed: bool
    ) -> None:
        statistic = load_statistic(self.name)
        shards = made_shards(sizes, seed=seed, signed=signed)
        partials = [statistic.partial(made.postings, made.tokens) for made in shards]
        state = pl.DataFrame(schema=FEATURE | statistic.state)
        ends = [*sorted(cuts), len(partials)]
        for start, end in zip([0, *ends], ends, strict=False):
            state = statistic.combine([state, *partials[start:end]])
        same_bits(state, statistic.combine(partials))
        same_bits(state, fold(statistic, shards))

    def test_merging_feature_by_feature_gives_the_same_bits(self, statistic: Statistic) -> None:
        partials = [statistic.partial(made.postings, made.tokens) for made in made_shards(SIZES, signed=True)]
        cut = [
            statistic.combine([p.filter(pl.col("feature") == feature) for p in partials])
            for feature in range(D_SAE)
        ]
        same_bits(pl.concat(cut), statistic.combine(partials))

    def test_a_fold_is_bit_identical_by_way_of_parquet(self, statistic: Statistic, tmp_path: Path) -> None:
        shards = made_shards(SIZES)
        read = []
        for number, made in enumerate(shards):
            statistic.partial(made.postings, made.tokens).write_parquet(tmp_path / f"{number}.parquet")
            read.append(pl.read_parquet(tmp_path / f"{number}.parquet"))
        same_bits(statistic.combine(read), fold(statistic, shards))

    def test_merging_leaves_its_arguments_alone(self, statistic: Statistic) -> None:
        a, b = (statistic.partial(made.postings, made.tokens) for made in made_shards((30, 40)))
        before = a.clone(), b.clone()
        statistic.combine([a, b])
        same_frame(a, before[0])
        same_frame(b, before[1])

    def test_the_table_has_every_feature_and_no_number_that_is_none(self, statistic: Statistic) -> None:
        for sizes in (SIZES, (1,), (0,)):
            shards = made_shards(sizes)
            table = statistic.finalize(fold(statistic, shards), totals_of(shards), D_SAE)
            assert table["feature"].to_list() == list(range(D_SAE))
            for column in table.select(cs.float()):
                assert column.drop_nulls().is_finite().all(), column.name

    def test_a_feature_that_never_fires_has_null_where_a_number_has_no_meaning(
        self, statistic: Statistic
    ) -> None:
        shards = made_shards(SIZES)
        table = statistic.finalize(fold(statistic, shards), totals_of(shards), D_SAE)
        assert table.row(NEVER, named=True) == {"feature": NEVER, **self.never}

    def test_a_store_without_any_row_has_a_table(self, statistic: Statistic) -> None:
        empty = pl.DataFrame(schema=FEATURE | statistic.state)
        table = statistic.finalize(empty, Totals(0, 0, 0, 0), D_SAE)
        assert dict(table.schema) == FEATURE | statistic.table
        assert table.height == D_SAE

    def test_a_feature_that_fires_once_has_what_one_value_gives(self, statistic: Statistic) -> None:
        shards = made_shards(SIZES)
        table = statistic.finalize(fold(statistic, shards), totals_of(shards), D_SAE)
        row = table.row(ONCE, named=True)
        assert {name: row[name] for name in self.once} == self.once
