"""Active rows sampled over the whole range of a feature's activations.

Each (feature, bin) keeps the row with the smallest hash(row, feature). The minimum of minima is the minimum,
so samples merge without loss, in any order. Bins are made as the histogram's, with `FRACTION_BITS` of the
fraction; a sample's bin follows from its value and is not stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.statistics.features.histogram import bins_of
from pipeline.statistics.features.ragged import Cells, elements, key_of, list_frame, run_starts
from pipeline.statistics.features.statistic import every_feature
from pipeline.statistics.splitmix import GOLDEN, mixed
from schemas.tables.tables import Schema
from schemas.values import F32, I64, U64, Postings, TokenShard, Totals

FRACTION_BITS = 4
"""16 bins an octave, so that most tenths of a feature hold two samples."""

STATE: Schema = {"sample_rows": pl.List(pl.UInt64()), "sample_values": pl.List(pl.Float32())}
TABLE: Schema = {}


def row_hash(features: NDArray[Any], rows: NDArray[Any]) -> U64:
    """Order in which a feature's rows are preferred as examples: SplitMix64 of row + feature * golden ratio.

    SplitMix64 is a bijection, so two rows of a feature never tie.
    """
    places = _terms(features)
    places += rows.astype(np.uint64, copy=False)
    return mixed(places)


def _terms(features: NDArray[Any]) -> U64:
    """What a feature adds to the numbers of its rows, modulo 2^64."""
    terms: U64 = features.astype(np.uint64)
    terms *= np.uint64(GOLDEN)
    return terms


class Samples:
    """Rows for `examples.quantile_examples`; nothing of them is in the feature table."""

    name = "samples"
    state = STATE
    table = TABLE

    def partial(self, postings: Postings, shard: TokenShard) -> pl.DataFrame:
        """The smallest hash of each bin in this shard; rows are numbered in the lake."""
        features = np.repeat(postings.features, np.diff(postings.offsets)).astype(np.int64)
        rows = (postings.rows + shard.row_start).astype(np.uint64)
        keys = key_of(features, bins_of(postings.values, FRACTION_BITS))
        order = np.argsort(keys)  # need not be stable: of a key one row is kept, by its hash
        starts = run_starts(keys[order])
        hashes = row_hash(features, rows)[order]
        smallest = np.repeat(np.minimum.reduceat(hashes, starts), np.diff(starts, append=len(keys)))
        kept = order[hashes == smallest]
        return list_frame(keys[kept], sample_rows=rows[kept], sample_values=postings.values[kept])

    def combine(self, states: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The smallest hash where several have a bin."""
        rows = [elements(state, "sample_rows") for state in states]
        values = [elements(state, "sample_values") for state in states]
        lists = zip(states, values, strict=True)
        cells = Cells([(s["feature"], s["sample_rows"], bins_of(v, FRACTION_BITS)) for s, v in lists])
        kept: list[tuple[I64, U64, F32]] = [
            (np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, np.float32))
        ]
        for block in cells.blocks():
            best = np.full(block.size, np.iinfo(np.uint64).max)
            row, value = np.zeros(block.size, np.uint64), np.zeros(block.size, np.float32)
            for part, cell in block.parts:
                new = rows[part.state][part.slice]
                hashes = mixed(np.repeat(_terms(part.features), part.lengths) + new)
                # two rows of a feature never tie: an equal hash is that of an empty cell
                smaller = np.flatnonzero(hashes <= best[cell])
                chosen = cell[smaller]
                best[chosen], row[chosen] = hashes[smaller], new[smaller]
                value[chosen] = values[part.state][part.slice][smaller]
            # no stored value is 0, so a 0 is a cell without a sample
            filled = np.flatnonzero(value)
            kept.append((block.keys(filled), row[filled], value[filled]))
        key, row, value = (np.concatenate(some) for some in zip(*kept, strict=True))
        return list_frame(key, sample_rows=row, sample_values=value)

    def finalize(self, state: pl.DataFrame, totals: Totals, d_sae: int) -> pl.DataFrame:  # noqa: ARG002
        """No column; see `examples.quantile_examples`."""
        return every_feature(state.select("feature"), d_sae)
