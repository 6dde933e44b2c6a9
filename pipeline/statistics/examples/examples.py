"""Example rows of each feature (schema `EXAMPLES`): the strongest, and some of each tenth of the active.

Rows in which a feature does not fire are drawn by `nonfiring`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.statistics.features.histogram import bin_edges, bins_of, reached
from pipeline.statistics.features.ragged import element_features, elements, key_of, run_starts
from pipeline.statistics.features.samples import row_hash
from schemas.tables.tables import EXAMPLES
from schemas.values import F32, F64, I64, U64

INTERVALS = 10
TOP = 20
"""Strongest rows of a feature that are kept."""

_CANDIDATES = 1 << 21

FloatType = type[np.float16] | type[np.float32]


class Strongest:
    """The `k` strongest rows of each feature of a state: |activation| descending, ties by row.

    Shards are shown one after another, in ascending rows. `state` is the merged state of all of them: its
    histograms give a bound that at least k activations of the feature reach, so that one comparison leaves
    few candidates to be ranked. Compared are the bits of |activation| as it is stored, which sort as it does.

    Where `update` gets documents it is the strongest row of each document that is ranked. How many
    documents reach a bound no histogram says, so that of such a `state` the column `feature` is enough.
    """

    def __init__(
        self, state: pl.DataFrame, dtype: FloatType, k: int = TOP, *, per_document: bool = False
    ) -> None:
        self._kind = "top_document" if per_document else "top"
        self._features = state["feature"].to_numpy()
        self._place = np.zeros(int(self._features[-1]) + 1 if len(self._features) else 0, np.int64)
        self._place[self._features] = np.arange(len(self._features))
        reach = np.zeros(len(self._features), np.float32) if per_document else reached(state, k)
        with np.errstate(over="ignore"):  # rounding moves no stored value to the other side of a bound
            self._bounds = _bits(reach.astype(dtype))
        self._k, self._dtype = k, dtype
        self._kept: list[tuple[I64, U64, NDArray[Any]]] = []
        self._n_kept = 0

    def may_hold(self, features: NDArray[Any], low: F32, high: F32) -> bool:
        """Whether one of `features`, with activations between `low` and `high` [F], may have a candidate."""
        most = _bits(np.maximum(np.abs(low), np.abs(high)).astype(self._dtype))
        return bool((most >= self._bounds[self._place[features]]).any())

    def update(
        self,
        features: NDArray[Any],
        counts: I64,
        values: NDArray[Any],
        rows: Callable[[], NDArray[Any]],
        documents: Callable[[NDArray[Any]], NDArray[Any]] | None = None,
    ) -> None:
        """Take `values` [Z] of `features` [F], `counts` [F] of each; `rows` gives [Z], if need be.

        `documents` gives the document of each of some rows; it must not descend as rows ascend, and all of a
        feature's rows in one document must be shown at once.
        """
        places, values = self._place[features], values.astype(self._dtype, copy=False)
        candidates = np.flatnonzero(_bits(values) >= np.repeat(self._bounds[places], counts))
        if not len(candidates):
            return
        # which feature each candidate is of: with many, counting through is quicker than looking up
        if 8 * len(candidates) > len(values):
            owners = np.repeat(np.arange(len(counts)), counts)[candidates]
        else:
            owners = np.searchsorted(np.cumsum(counts), candidates, side="right")
        shown = rows()[candidates].astype(np.uint64, copy=False)
        if documents is not None:
            best = strongest_of_each(_bits(values[candidates]), owners, documents(shown))
            candidates, owners, shown = candidates[best], owners[best], shown[best]
        self._kept.append((places[owners], shown, values[candidates]))
        self._n_kept += len(candidates)
        if self._n_kept > _CANDIDATES + 2 * self._k * len(self._features):
            # drop what is not among the strongest; what comes later must be stronger than the last of them
            places, shown, values, rank = self._ranked()
            full = rank == self._k - 1
            self._bounds[places[full]] = _bits(values[full]) + 1
            self._kept, self._n_kept = [(places, shown, values)], len(shown)

    def table(self) -> pl.DataFrame:
        """The strongest rows, rank 0 first; a feature that fires less often has fewer."""
        places, rows, values, rank = self._ranked()
        interval = np.zeros(len(rows), np.uint8)
        return example_frame(
            self._kind, self._features[places], interval, rank, rows, values.astype(np.float32)
        )

    def _ranked(self) -> tuple[I64, U64, NDArray[Any], I64]:
        """Place, row, activation and rank of the strongest, in this order; equally strong ones by row."""
        empty = (np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, self._dtype))
        places, rows, values = (np.concatenate(some) for some in zip(empty, *self._kept, strict=True))
        # one sort by (place, weakness): the bits of |activation| take at most 32 of the key's
        weakness = (1 << 32) - _bits(values).astype(np.int64)
        order = np.argsort((places << 33) + weakness, kind="stable")  # equal ones were shown by row
        rank = rank_in_runs(places[order])
        order, rank = order[rank < self._k], rank[rank < self._k]
        return places[order], rows[order], values[order], rank


def strongest_of_each(sizes: NDArray[Any], *keys: NDArray[Any]) -> I64:
    """Place of the first largest of `sizes` [Z] in each run of rows with equal `keys` [Z], int64."""
    # a run ends where any of the keys changes
    new = np.ones(len(sizes), np.bool_)
    new[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    starts = np.flatnonzero(new)
    if not len(starts):
        return starts
    run = np.cumsum(new) - 1
    largest = np.flatnonzero(sizes == np.maximum.reduceat(sizes, starts)[run])
    return largest[run_starts(run[largest])]


def quantile_examples(state: pl.DataFrame, per_interval: int = 2) -> pl.DataFrame:
    """Examples of each tenth (interval 0 to 9) of a feature's active rows, the lowest activations first.

    Where all are positive these are the weakest; negative ones come before them, the strongest of them first.

    `state` is the joined state of all statistics. A sample's place among the active rows comes from the
    histogram, whose rows are taken as evenly spread inside a bin (`tenths` counts it exactly). Of an interval
    the `per_interval` smallest hashes are given, rank 0 first; one into which no sample fell has none.
    """
    features = element_features(state, "sample_rows")
    rows, values = elements(state, "sample_rows"), elements(state, "sample_values")
    share = _share_below(state, features, values)
    interval = np.minimum(share * INTERVALS, INTERVALS - 1).astype(np.uint8)
    kept, rank = smallest_hashes(row_hash(features, rows), key_of(features, interval), per_interval)
    return example_frame("quantile", features[kept], interval[kept], rank, rows[kept], values[kept])


def smallest_hashes(hashes: U64, keys: I64, k: int) -> tuple[I64, I64]:
    """Places of the `k` smallest hashes of each key, by key and hash, and their ranks; keys ascend.

    They do: a feature's samples are in order of their bins, so of their values, and so of their shares.
    """
    kept, ranks = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    left = np.arange(len(keys))
    for rank in range(k):
        starts = run_starts(keys[left])
        if not len(starts):
            break
        runs = np.diff(np.append(starts, len(left)))
        # the smallest hash of every key at once, k times: k is small, and nothing is sorted by hash
        first = hashes[left] == np.repeat(np.minimum.reduceat(hashes[left], starts), runs)
        kept.append(left[first])
        ranks.append(np.full(len(starts), rank))
        left = left[~first]
    places, rank_of = np.concatenate(kept), np.concatenate(ranks)
    order = np.lexsort((rank_of, keys[places]))
    return places[order], rank_of[order]


def example_table(strongest: Strongest, state: pl.DataFrame) -> pl.DataFrame:
    """The table `examples` of a state's features."""
    both = pl.concat([quantile_examples(state), strongest.table()])  # each sorted, and kinds in their order
    return both.sort("feature", maintain_order=True)


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    """Bits of |value|, uint16 of float16 and uint32 of float32."""
    if values.dtype == np.float16:
        return values.view(np.uint16) & np.uint16(0x7FFF)
    return values.view(np.uint32) & np.uint32(0x7FFFFFFF)


def rank_in_runs(keys: NDArray[Any]) -> I64:
    """Place of each element in its run of equal keys."""
    starts = run_starts(keys)
    return np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))


def example_frame(
    kind: str, features: NDArray[Any], interval: NDArray[np.uint8], rank: I64, rows: U64, values: F32
) -> pl.DataFrame:
    """Rows of one kind of the table `examples`."""
    frame = pl.DataFrame(
        {
            "feature": features.astype(np.uint32),
            "interval": interval,
            "rank": rank.astype(np.uint16),
            "row": rows,
            "activation": values,
        }
    )
    return frame.with_columns(kind=pl.lit(kind)).select(*EXAMPLES)


def _share_below(state: pl.DataFrame, features: I64, values: F32) -> F64:
    """Estimated share of its feature's active rows that stand before each sample, float64 [L] in (0, 1)."""
    counts, bins = elements(state, "bin_counts"), elements(state, "bins")
    cumulative = np.append(0, np.cumsum(counts))
    bounds = np.append(0, np.cumsum(state["bins"].list.len().to_numpy().astype(np.int64)))
    feature = np.searchsorted(state["feature"].to_numpy(), features)
    # of each feature the rows before its first bin, to be taken away, and its rows
    first, n = cumulative[bounds[:-1]], np.diff(cumulative[bounds])
    sample_bins = bins_of(values)
    place = np.searchsorted(key_of(element_features(state, "bins"), bins), key_of(features, sample_bins))
    left, right = bin_edges(sample_bins)
    # rows of a bin stand evenly in it, the first and the last half a place from its edges
    inside = 0.5 + (values - left) / (right - left) * (counts[place] - 1)
    share: F64 = (cumulative[place] - first[feature] + inside) / n[feature]
    return share
