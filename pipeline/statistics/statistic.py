"""What a statistic is: a partial per shard, a lossless merge, and columns of the feature table.

Frames are keyed by `feature` (u32, ascending, unique); a partial and a merged state have the same columns and
hold only features that fired. Shapes in this room: F features that fired, Z nonzeros, L list elements.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import polars as pl

from schemas.tables import Schema
from schemas.values import I64, U32, Postings, TokenShard, Totals

FEATURE: Schema = {"feature": pl.UInt32()}


class Statistic(Protocol):
    """Three pure functions; `partial` runs in the worker, the others in jobs."""

    name: str
    state: Schema
    """Columns of the partial, and of every merge of partials, beside `feature`."""
    table: Schema
    """Columns of the feature table, beside `feature`."""

    def partial(self, postings: Postings, shard: TokenShard) -> pl.DataFrame:
        """Statistic of one shard: a row per feature that fired, columns `feature` and `state`."""
        ...

    def combine(self, a: pl.DataFrame, b: pl.DataFrame) -> pl.DataFrame:
        """Merge two states, `a` of the earlier shards; an empty frame on either side changes no bit."""
        ...

    def finalize(self, state: pl.DataFrame, totals: Totals, d_sae: int) -> pl.DataFrame:
        """Columns `feature` and `table` for all features 0 .. d_sae - 1."""
        ...


def feature_union(a: pl.DataFrame, b: pl.DataFrame) -> tuple[U32, I64, I64]:
    """Features of either frame (uint32, ascending), and where those of `a` and of `b` stand among them."""
    of_a, of_b = a["feature"].to_numpy(), b["feature"].to_numpy()
    features = np.union1d(of_a, of_b)
    return features, np.searchsorted(features, of_a), np.searchsorted(features, of_b)


def every_feature(state: pl.DataFrame, d_sae: int) -> pl.DataFrame:
    """The state with a row for each feature 0 .. d_sae - 1, null where the feature never fired."""
    features = pl.DataFrame({"feature": np.arange(d_sae, dtype=np.uint32)})
    return features.join(state, on="feature", how="left", maintain_order="left")


def ratio(numerator: pl.Expr, denominator: pl.Expr) -> pl.Expr:
    """Quotient in float64, null where the denominator is 0.

    Both must be columns: by a literal Polars multiplies with the reciprocal, which can miss the last bit.
    """
    return pl.when(denominator != 0).then(numerator.cast(pl.Float64) / denominator.cast(pl.Float64))
