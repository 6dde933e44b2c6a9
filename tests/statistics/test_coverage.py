from typing import Any, ClassVar

import numpy as np

from pipeline.statistics.features.coverage import Coverage, distinct
from schemas.values import Totals
from tests.fixtures.tokens import as_one, fold, made_shards, shard_around, totals_of
from tests.statistics.conformance import StatisticConformance

COVERAGE = Coverage()


class TestCoverage(StatisticConformance):
    name = "coverage"
    never: ClassVar[dict[str, Any]] = {
        "active_contexts": 0,
        "context_frequency": 0.0,
        "active_documents": 0,
        "document_frequency": 0.0,
    }
    once: ClassVar[dict[str, Any]] = {"active_contexts": 1, "active_documents": 1}


def test_contexts_and_documents_equal_the_sets_counted_by_hand() -> None:
    shards = made_shards((60, 3, 200))
    whole, totals = as_one(shards), totals_of(shards)
    table = COVERAGE.finalize(fold(COVERAGE, shards), totals, 12)
    for feature in range(12):
        rows = np.flatnonzero(whole.dense[:, feature])
        contexts = set(whole.tokens.context_of_row()[rows].tolist())
        documents = set(whole.tokens.document[rows].tolist())
        row = table.row(feature, named=True)
        assert row["active_contexts"] == len(contexts)
        assert row["active_documents"] == len(documents)
        assert row["context_frequency"] == len(contexts) / totals.contexts
        assert row["document_frequency"] == len(documents) / totals.documents


def test_a_feature_is_counted_once_per_context_however_often_it_fires() -> None:
    dense = np.zeros((24, 2), np.float32)
    dense[[0, 1, 7, 8, 23], 0] = 1
    dense[:, 1] = 1
    made = shard_around(dense, context=8, document=24)
    partial = COVERAGE.partial(made.postings, made.tokens)
    assert partial["active_contexts"].to_list() == [3, 3]
    assert partial["active_documents"].to_list() == [1, 1]


def test_a_feature_starting_in_the_context_where_the_one_before_ended_is_counted() -> None:
    labels, offsets = np.array([3, 5, 5, 5, 9]), np.array([0, 2, 4, 5])
    assert distinct(labels, offsets).tolist() == [2, 1, 1]


def test_frequencies_over_nothing_are_null() -> None:
    made = made_shards((0,))[0]
    table = COVERAGE.finalize(fold(COVERAGE, [made]), Totals(0, 0, 0, 0), 3)
    assert table["context_frequency"].to_list() == [None] * 3
    assert table["active_contexts"].to_list() == [0] * 3
