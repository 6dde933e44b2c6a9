"""Example rows of each feature (schema `EXAMPLES`): the strongest, and some of each tenth of the active."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.statistics.histogram import bin_edges, bins_of
from pipeline.statistics.ragged import element_features, elements, key_of, run_starts
from pipeline.statistics.samples import row_hash
from schemas.tables import EXAMPLES
from schemas.values import F32, F64, I64, Postings

INTERVALS = 10


def top_examples(postings: Postings, row_start: int, k: int = 20) -> pl.DataFrame:
    """The `k` strongest rows per feature of one shard: |activation| descending, ties by row; rank 0 first.

    Rows come out numbered in the lake. A feature that fires less often has fewer.
    """
    features = np.repeat(postings.features, np.diff(postings.offsets))
    return _strongest(features, (postings.rows + row_start).astype(np.uint64), postings.values, k)


def combine_top(a: pl.DataFrame, b: pl.DataFrame, k: int = 20) -> pl.DataFrame:
    """The strongest of two results of `top_examples`; grouping and order of merges do not matter."""
    both = pl.concat([a, b])
    return _strongest(both["feature"].to_numpy(), both["row"].to_numpy(), both["activation"].to_numpy(), k)


def example_table(shards: Iterable[tuple[Postings, int]], state: pl.DataFrame) -> pl.DataFrame:
    """The table `examples`: strongest rows of each feature, and samples over its range.

    `shards` are the postings of all shards, each with its `row_start`; `state` is their merged state.
    """
    strongest = pl.DataFrame(schema=EXAMPLES)
    for postings, row_start in shards:
        strongest = combine_top(strongest, top_examples(postings, row_start))
    both = pl.concat([strongest, quantile_examples(state)])
    return both.sort("feature", "kind", "interval", "rank")


def quantile_examples(state: pl.DataFrame, per_interval: int = 2) -> pl.DataFrame:
    """Examples of each tenth (interval 0 to 9) of a feature's active rows, the lowest activations first.

    Where all are positive these are the weakest; negative ones come before them, the strongest of them first.

    `state` is the joined state of all statistics. A sample's place among the active rows comes from the
    histogram, whose rows are taken as evenly spread inside a bin. Of an interval the `per_interval` smallest
    hashes are given, rank 0 first; one into which no sample fell has none.
    """
    features = element_features(state, "sample_rows")
    rows, values = elements(state, "sample_rows"), elements(state, "sample_values")
    share = _share_below(state, features, values)
    interval = np.minimum(share * INTERVALS, INTERVALS - 1).astype(np.uint8)
    order = np.lexsort((row_hash(features, rows), interval, features))
    return _ranked("quantile", order, features, interval, rows, values, per_interval)


def _strongest(features: NDArray[Any], rows: NDArray[Any], values: F32, k: int) -> pl.DataFrame:
    order = np.lexsort((rows, -np.abs(values), features))
    return _ranked("top", order, features, np.zeros(len(rows), np.uint8), rows, values, k)


def _ranked(
    kind: str,
    order: I64,
    features: NDArray[Any],
    interval: NDArray[np.uint8],
    rows: NDArray[Any],
    values: F32,
    limit: int,
) -> pl.DataFrame:
    """The first `limit` of each (feature, interval) in an `order` that keeps these together."""
    starts = run_starts(key_of(features, interval)[order])
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    order, rank = order[rank < limit], rank[rank < limit]
    frame = pl.DataFrame(
        {
            "feature": features[order].astype(np.uint32),
            "interval": interval[order],
            "rank": rank.astype(np.uint16),
            "row": rows[order],
            "activation": values[order],
        }
    )
    return frame.with_columns(kind=pl.lit(kind)).select(*EXAMPLES)


def _share_below(state: pl.DataFrame, features: I64, values: F32) -> F64:
    """Estimated share of its feature's active rows that stand before each sample, float64 [L] in (0, 1)."""
    counts, bins = elements(state, "bin_counts"), elements(state, "bins")
    cumulative = np.append(0, np.cumsum(counts))
    bounds = np.append(0, np.cumsum(state["bins"].list.len().to_numpy().astype(np.int64)))
    feature = np.searchsorted(state["feature"].to_numpy(), features)
    first, n = cumulative[bounds[:-1]], np.diff(cumulative[bounds])
    sample_bins = bins_of(values)
    place = np.searchsorted(key_of(element_features(state, "bins"), bins), key_of(features, sample_bins))
    left, right = bin_edges(sample_bins)
    inside = 0.5 + (values - left) / (right - left) * (counts[place] - 1)
    share: F64 = (cumulative[place] - first[feature] + inside) / n[feature]
    return share
