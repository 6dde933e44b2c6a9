"""The example rows of features with their tokens, and the activation of the feature at every one of them.

Shapes: E examples, T tokens of a window, F features of a block, B bins. A task takes a block of features
and reads its activations shard by shard: in memory are E x T x 8 bytes (F 2,048, 40 examples of each, T
128: 84 MB) and the block's activations in one shard, run by run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pipeline.statistics.features.histogram import bin_edges
from pipeline.store import FeatureStore
from pipeline.store.formats.parquet import read_frame, scan_frame
from pipeline.store.objects.verbs import readable
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.store.reading.windows import Windows, concatenated_ranges
from pipeline.store.records.vocabulary import Vocabulary
from schemas.layout import Layout, StorePath
from schemas.values import F32, I32, I64, U32

KINDS = ("top", "quantile")
"""Of examples that are exported; random rows, in which a feature is not active, are not."""
BINS = 50
"""Of a feature's histogram, as SAEDashboard has them."""
EFFECTS = ("promoted_tokens", "promoted_effects", "suppressed_tokens", "suppressed_effects")
LOGITS = ("top_tokens", "top_logits", "bottom_tokens", "bottom_logits")
"""Columns of the table `logits`."""
TENTHS = (
    *("feature", "n_active", "histogram_bins", "histogram_counts"),
    *("min_activation", "max_activation"),
)
"""Columns of the feature table that `tenths` needs, and the feature."""


@dataclass(frozen=True)
class Source:
    """What the tasks of an export read, without opening the store."""

    layout: Layout
    site: str
    shards: Sequence[ShardFiles]
    tables: dict[str, StorePath]
    vocabulary: Vocabulary
    window: int

    def table(self, name: str, features: range) -> pl.DataFrame:
        """The rows of a derived table about some features."""
        scan = scan_frame(self.tables[name])
        return scan.filter(pl.col("feature").is_between(features.start, features.stop - 1)).collect()


@dataclass(frozen=True)
class Block:
    """Features of a block with their examples.

    `examples` [E] is the table's rows by feature, kind and rank, with `context` (u64), `position` of the row
    in its context and `place` of the row in its window; `token_ids` int32 [E, T] and `values` float32 [E, T],
    of which `lengths` int64 [E] are the window's; `histogram` int64 [F, B] counts activations in B bins of
    equal width between `low` and `high` float32 [F].
    """

    features: pl.DataFrame
    examples: pl.DataFrame
    token_ids: I32
    values: F32
    lengths: I64
    histogram: I64
    low: F32
    high: F32


def source(store: FeatureStore, site: str, window: int, optional: Sequence[str] = ()) -> Source:
    """What tasks need of a site; InputError where `latentlake stats` was not run."""
    needed = ["features", "examples"]
    for name in needed:
        store.scan_table(site, name)  # raises where one is missing, warns where stale
    names = needed + [name for name in optional if store.has_table(site, name)]
    return Source(
        layout=store.layout,
        site=site,
        shards=store.shard_files(site),
        tables={name: store.layout.table(site, name) for name in names},
        vocabulary=store.vocabulary,
        window=window,
    )


def blocks(chosen: U32, feature_block: int) -> list[range]:
    """The ranges of whole feature blocks in which there are chosen features."""
    firsts = np.unique(chosen // feature_block) * feature_block
    return [range(int(first), int(first) + feature_block) for first in firsts]


def read_block(source: Source, chosen: U32, features: range) -> Block:
    """The chosen features of a range."""
    inside = pl.col("feature").is_in(chosen[(chosen >= features.start) & (chosen < features.stop)].tolist())
    table = source.table("features", features).filter(inside).sort("feature")
    examples = source.table("examples", features).filter(inside & pl.col("kind").is_in(list(KINDS)))
    order = pl.col("kind").replace_strict(list(KINDS), list(range(len(KINDS))), return_dtype=pl.UInt8)
    gathered = _Gathered(source, table, examples.sort("feature", order, "interval", "rank"))
    for number, shard in enumerate(source.shards):
        gathered.read(number, shard)
    return gathered.block()


class _Gathered:
    """What was read so far of a block."""

    def __init__(self, source: Source, table: pl.DataFrame, examples: pl.DataFrame) -> None:
        self._source, self._table, self._examples = source, table, examples
        self._features: I64 = table["feature"].to_numpy().astype(np.int64)
        self._owner: I64 = examples["feature"].to_numpy().astype(np.int64)
        self._rows: I64 = examples["row"].to_numpy().astype(np.int64)
        # The shard of a row is the last one that starts at or before it.
        starts = np.array([shard.record.row_start for shard in source.shards], np.int64)
        self._shard = np.searchsorted(starts, self._rows, side="right") - 1
        n, width = len(self._rows), source.window
        self._token_ids, self._values = np.zeros((n, width), np.int32), np.zeros((n, width), np.float32)
        self._lengths, self._first = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._position, self._context = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._low, self._high = (table[f"{end}_activation"].fill_null(0).to_numpy() for end in ("min", "max"))
        self._histogram = np.zeros((table.height, BINS), np.int64)

    def read(self, number: int, shard: ShardFiles) -> None:
        """Take in one shard."""
        in_shard = np.flatnonzero(self._shard == number)
        if len(in_shard):
            self._place(in_shard, shard)
        if len(self._features):
            # Postings come in runs of the features between: a run may hold features that were not chosen.
            for feature, row, value in _activations(shard, range(self._features[0], self._features[-1] + 1)):
                self._fill_values(in_shard, feature, row, value)
                self._count(feature, value)

    def _place(self, in_shard: I64, shard: ShardFiles) -> None:
        """Contexts, windows and tokens of the examples of a shard."""
        path = self._source.layout.tokens(shard.record.name)
        with readable(path):
            frame = read_frame(path, ["row_offset", "token_ids"])
        ids = frame["token_ids"].explode().to_numpy()
        context_ptr = np.append(frame["row_offset"].to_numpy().astype(np.int64), len(ids))
        # Rows are numbered through the lake, contexts' offsets in a shard: count from the shard's first row.
        local = self._rows[in_shard] - shard.record.row_start
        windows = Windows.of_size(local, context_ptr, self._source.window)
        lengths = windows.lengths
        self._context[in_shard] = windows.context + shard.record.context_start
        self._position[in_shard] = local - windows.begin
        self._first[in_shard], self._lengths[in_shard] = windows.first + shard.record.row_start, lengths
        # Windows at a context's ends are shorter than T: fill each from column 0, zeros are left after it.
        places = concatenated_ranges(windows.first, windows.stop)
        column = places - np.repeat(windows.first, lengths)
        self._token_ids[np.repeat(in_shard, lengths), column] = ids[places]

    def _fill_values(self, in_shard: I64, feature: I64, row: I64, value: F32) -> None:
        """Put activations, sorted by (feature, row), where examples of their features show those rows."""
        if not len(in_shard) or not len(row):
            return
        # One ascending key of (feature, row): a window's activations lie between two places of it.
        base, span = int(row.min()), int(row.max()) - int(row.min()) + 2
        key = feature * span + (row - base)
        # Windows reach beyond the run's rows: held inside the span, else they would find other features'.
        first = np.clip(self._first[in_shard] - base, 0, span - 1)
        stop = np.clip(self._first[in_shard] + self._lengths[in_shard] - base, 0, span - 1)
        low = np.searchsorted(key, self._owner[in_shard] * span + first)
        high = np.searchsorted(key, self._owner[in_shard] * span + stop)
        places, example = concatenated_ranges(low, high), np.repeat(in_shard, high - low)
        self._values[example, row[places] - self._first[example]] = value[places]

    def _count(self, feature: I64, value: F32) -> None:
        """Add the activations of chosen features to their histograms."""
        # Beyond the last chosen feature searchsorted gives a place that is not there.
        place = np.minimum(np.searchsorted(self._features, feature), len(self._features) - 1)
        kept = self._features[place] == feature
        place, value = place[kept], value[kept]
        low, width = self._low[place].astype(np.float64), (self._high - self._low).astype(np.float64)[place]
        # A feature of one value has no width: all of it is in bin 0. The largest value is in the last bin.
        share = np.divide(value - low, width, out=np.zeros(len(value)), where=width > 0)
        bins = np.clip((share * BINS).astype(np.int64), 0, BINS - 1)
        # Histograms of all features in one count, feature-major.
        counts = np.bincount(place * BINS + bins, minlength=self._histogram.size)
        self._histogram += counts.reshape(self._histogram.shape)

    def block(self) -> Block:
        examples = self._examples.with_columns(
            context=pl.Series(self._context.astype(np.uint64)),
            position=pl.Series(self._position.astype(np.uint32)),
            place=pl.Series((self._rows - self._first).astype(np.uint32)),
        )
        arrays = (self._token_ids, self._values, self._lengths, self._histogram, self._low, self._high)
        return Block(self._table, examples, *arrays)


def _activations(shard: ShardFiles, features: range) -> Iterator[tuple[I64, I64, F32]]:
    """Feature, row (of the lake) and activation, sorted by (feature, row), in runs of whole features."""
    for postings in shard.postings_of(features):
        feature = np.repeat(postings.features, np.diff(postings.offsets)).astype(np.int64)
        yield feature, postings.rows + shard.record.row_start, postings.values


Favoured = tuple[list[int], list[float], list[int], list[float]]
"""Tokens that a feature promotes and how much, the most first; then those that it suppresses."""


def favoured(source: Source, features: range) -> dict[int, Favoured]:
    """Of each feature, as far as `latentlake logits` was run: the plain effect W_dec @ W_U of dashboards.

    Of a model without one unembedding matrix it is the logits after the final norm, b_dec included.
    """
    if "logits" not in source.tables:
        return {}
    by_feature: dict[int, Favoured] = {}
    for row in source.table("logits", features).iter_rows(named=True):
        names = EFFECTS if row.get("promoted_tokens") is not None else LOGITS
        tokens, values, against, least = (row[name] for name in names)
        by_feature[int(row["feature"])] = tokens, values, against, least
    return by_feature


def tenths(row: dict[str, Any]) -> list[float]:
    """Edges of the tenths of a feature's active activations, 11 of them; empty where it never fires.

    `row` is that of the feature table. From its histogram, rows taken as evenly spread inside a bin, as the
    intervals of examples are; a bin reaches beyond the least and the largest activation, the edges do not.
    """
    if not row["n_active"]:
        return []
    left, right = bin_edges(np.asarray(row["histogram_bins"], np.int16))
    counts = np.asarray(row["histogram_counts"], np.float64)
    # `below`: the share of activations left of each bin; each edge lies in the bin that crosses its share.
    below = np.append(0, np.cumsum(counts)) / counts.sum()
    places = np.linspace(0, 1, 11)
    bins = np.clip(np.searchsorted(below, places, side="left") - 1, 0, len(counts) - 1)
    inside = (places - below[bins]) / (counts[bins] / counts.sum())
    edges = left[bins] + (right[bins] - left[bins]) * inside
    return list(map(float, np.clip(edges, row["min_activation"], row["max_activation"])))
