"""What a statistic is: a partial per shard, a lossless merge, and columns of the feature table.

Merging is a left fold in shard order: `combine([a, b, c])` has the bits of `combine([combine([a, b]), c])`.

Frames are keyed by `feature` (u32, ascending, unique); a partial and a merged state have the same columns and
hold only features that fired. Shapes in this room: F features that fired, Z nonzeros, L list elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import polars as pl

from schemas.tables.tables import Schema
from schemas.values import I64, U32, Postings, TokenShard, Totals

FEATURE: Schema = {"feature": pl.UInt32()}


class Statistic(Protocol):
    """Three pure functions; `partial` runs in the worker, the others in jobs."""

    name: str
    state: Schema
    """Columns of the partial, and of every merge of partials, in addition to `feature`."""
    table: Schema
    """Columns of the feature table, in addition to `feature`."""

    def partial(self, postings: Postings, shard: TokenShard) -> pl.DataFrame:
        """Statistic of one shard: a row per feature that fired, columns `feature` and `state`."""
        ...

    def combine(self, states: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """Merge states, those of earlier shards first; an empty frame among them changes no bit."""
        ...

    def finalize(self, state: pl.DataFrame, totals: Totals, d_sae: int) -> pl.DataFrame:
        """Columns `feature` and `table` for all features 0 .. d_sae - 1."""
        ...


def feature_union(states: Sequence[pl.DataFrame]) -> tuple[U32, list[I64]]:
    """Features of any of the frames (uint32, ascending), and where those of each frame stand among them."""
    ids_by_state = [state["feature"].to_numpy().astype(np.int64) for state in states]
    present = np.zeros(max((int(some[-1]) + 1 for some in ids_by_state if len(some)), default=0), np.bool_)
    for some in ids_by_state:
        present[some] = True
    # the n-th feature present has place n: linear, where a union by sorting is not
    place = np.cumsum(present) - 1
    return np.flatnonzero(present).astype(np.uint32), [place[some] for some in ids_by_state]


def every_feature(state: pl.DataFrame, d_sae: int) -> pl.DataFrame:
    """The state with a row for each feature 0 .. d_sae - 1, null where the feature never fired."""
    features = pl.DataFrame({"feature": np.arange(d_sae, dtype=np.uint32)})
    return features.join(state, on="feature", how="left", maintain_order="left")


def ratio(numerator: pl.Expr, denominator: pl.Expr) -> pl.Expr:
    """Quotient in float64, null where the denominator is 0.

    Both must be columns: by a literal Polars multiplies with the reciprocal, which can miss the last bit.
    """
    return pl.when(denominator != 0).then(numerator.cast(pl.Float64) / denominator.cast(pl.Float64))
