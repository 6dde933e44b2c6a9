"""In how many contexts and documents a feature fires.

A context and a document lie in one shard each, so counts of shards add.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.statistics.features.statistic import every_feature, feature_union, ratio
from schemas.tables.tables import Schema
from schemas.values import I64, Postings, TokenShard, Totals

STATE: Schema = {"active_contexts": pl.Int64(), "active_documents": pl.Int64()}
TABLE: Schema = {
    "active_contexts": pl.Int64(),
    "context_frequency": pl.Float64(),
    "active_documents": pl.Int64(),
    "document_frequency": pl.Float64(),
}


def distinct(labels: NDArray[Any], offsets: I64) -> I64:
    """Distinct labels in each group of `labels` [Z] cut by `offsets` [F + 1], int64 [F].

    Labels must not descend inside a group, nor may a group be empty.
    """
    # a group begins anew even where its first label is that of the last row before it
    new = np.ones(len(labels), np.int64)
    new[1:] = labels[1:] != labels[:-1]
    new[offsets[:-1]] = 1
    return np.add.reduceat(new, offsets[:-1])


class Coverage:
    """Contexts and documents with at least one active row, and their share of those with a counted row."""

    name = "coverage"
    state = STATE
    table = TABLE

    def partial(self, postings: Postings, shard: TokenShard) -> pl.DataFrame:
        """Counts changes of context and document along a feature's rows, which are in row order."""
        assert np.all(shard.document[1:] >= shard.document[:-1]), "documents of a shard are out of order"
        context = shard.context_of_row()
        return pl.DataFrame(
            {
                "feature": postings.features,
                "active_contexts": distinct(context[postings.rows], postings.offsets),
                "active_documents": distinct(shard.document[postings.rows], postings.offsets),
            }
        )

    def combine(self, states: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """Adds counts."""
        features, places = feature_union(states)
        columns = {name: np.zeros(len(features), np.int64) for name in STATE}
        for state, at in zip(states, places, strict=True):
            for name, column in columns.items():
                column[at] += state[name].to_numpy()
        return pl.DataFrame({"feature": features, **columns})

    def finalize(self, state: pl.DataFrame, totals: Totals, d_sae: int) -> pl.DataFrame:
        """Counts, 0 where the feature never fires, and frequencies, null where there is nothing to count."""
        columns = {name: np.full(d_sae, getattr(totals, name)) for name in ("contexts", "documents")}
        table = (
            every_feature(state, d_sae)
            .with_columns(pl.col(*STATE).fill_null(0))
            .hstack(pl.DataFrame(columns))
        )
        return table.select(
            "feature",
            "active_contexts",
            ratio(pl.col("active_contexts"), pl.col("contexts")).alias("context_frequency"),
            "active_documents",
            ratio(pl.col("active_documents"), pl.col("documents")).alias("document_frequency"),
        )
