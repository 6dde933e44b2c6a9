"""Contexts without a feature: truly so, all of them where all are asked for, and the same for any cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from pipeline.statistics.examples import nonfiring
from pipeline.statistics.examples.nonfiring import NonFiring
from schemas.tables.tables import EXAMPLES
from tests.fixtures.tokens import Made, made_shards

FEATURES = 7


def contexts_of(made: Made) -> np.ndarray:
    return made.tokens.context_of_row() - made.tokens.context_start


def silent_contexts(shards: list[Made], feature: int) -> list[tuple[int, int]]:
    """(shard, context) of every context with a counted row in which the feature never fires."""
    result = []
    for number, made in enumerate(shards):
        context = contexts_of(made)
        for one in range(made.tokens.n_contexts):
            rows = context == one
            if not made.dense[rows, feature].any() and made.tokens.counted[rows].any():
                result.append((number, one))
    return result


def drawn(shards: list[Made], n: int, features: np.ndarray, pieces: int = 1) -> pl.DataFrame:
    dense = np.concatenate([made.dense for made in shards])
    everywhere = np.concatenate([[number] * made.tokens.n_rows for number, made in enumerate(shards)])
    context = np.concatenate([contexts_of(made) for made in shards])
    active = [len(set(zip(everywhere[r], context[r], strict=True))) for r in (dense[:, features] != 0).T]
    total = sum(made.tokens.n_contexts for made in shards)
    looking, first = NonFiring(features, np.array(active), total, n), 0
    for made in shards:
        looking.begin(made.tokens, first)
        first += made.tokens.n_contexts
        p = made.postings
        for some in np.array_split(np.flatnonzero(np.isin(p.features, features)), pieces):
            if len(some):
                rows = [p.rows[p.offsets[f] : p.offsets[f + 1]] for f in some]
                shown = contexts_of(made)[np.concatenate(rows)]
                looking.strike(p.features[some], np.array([len(r) for r in rows]), shown)
    return looking.table()


@pytest.fixture(scope="module")
def shards() -> list[Made]:
    """Two shards of contexts of 8 rows; the second context of the first is not counted."""
    first, second = made_shards((90, 61), d_sae=FEATURES)
    counted = first.tokens.counted.copy()
    counted[8:16] = False
    dense = first.dense.copy()
    dense[8:16] = 0
    dense[:, 3], second.dense[:, 3] = counted, second.tokens.counted  # in every context that counts
    dense[20:, 5], second.dense[:, 5] = 0, 0  # in few
    return [Made(replace(first.tokens, counted=counted), dense), second]


def test_all_silent_contexts_are_found_where_so_many_are_requested(shards: list[Made]) -> None:
    result = drawn(shards, 1000, np.arange(FEATURES))
    assert dict(result.schema) == EXAMPLES
    assert set(result["kind"]) == {"random"}
    assert not result["activation"].to_numpy().any()
    for feature in range(FEATURES):
        mine = result.filter(feature=feature)
        assert mine["rank"].to_list() == list(range(mine.height))
        expected = silent_contexts(shards, feature)
        starts = [made.tokens.row_start for made in shards]
        rows = mine["row"].to_numpy().astype(np.int64)
        shard = np.searchsorted(starts, rows, side="right") - 1
        places = [(int(s), int(row - starts[s])) for s, row in zip(shard, rows, strict=True)]
        assert sorted((s, int(contexts_of(shards[s])[row])) for s, row in places) == expected
        assert all(shards[s].tokens.counted[row] for s, row in places)
    assert result.filter(feature=3).is_empty()


def test_a_few_are_the_first_of_all_and_differ_between_features(shards: list[Made]) -> None:
    everything = drawn(shards, 1000, np.arange(FEATURES))
    few = drawn(shards, 2, np.arange(FEATURES))
    assert few.equals(everything.filter(pl.col("rank") < 2))
    assert few.filter(rank=0)["row"].n_unique() > 2


@pytest.mark.parametrize("pieces", [2, 5])
def test_nothing_depends_on_which_features_are_looked_at_together(shards: list[Made], pieces: int) -> None:
    together = drawn(shards, 3, np.arange(FEATURES))
    assert drawn(shards, 3, np.arange(FEATURES), pieces).equals(together)
    some = np.array([1, 5, 6])
    assert drawn(shards, 3, some).equals(together.filter(pl.col("feature").is_in(some.tolist())))


@pytest.mark.parametrize("contexts", [1, 2, 30, 97, 1000])
def test_the_order_of_a_feature_goes_through_every_context_once(contexts: int) -> None:
    features = np.arange(50)
    order = nonfiring._sequence(features, np.full(50, contexts), contexts).reshape(50, contexts)
    assert (np.sort(order, axis=1) == np.arange(contexts)).all()


def test_tries_are_enough_for_what_is_requested_and_bounded() -> None:
    tries = nonfiring._tries(np.array([0, 500, 999, 1000, 10**6]), 1000, 10)
    assert tries.tolist() == [36, 72, 1000, 0, 0]
    assert nonfiring._tries(np.array([10**9 - 1]), 10**9, 10).tolist() == [nonfiring.TRIED]
