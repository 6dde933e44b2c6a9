"""How stable ranks are, from the partials of all shards: `pipeline.statistics.resampling`, by ranges.

A task takes a range of features and some of the draws, reads their moments shard by shard, and returns a
value of each feature and draw; this process ranks them, and keeps for each feature the few ranks that may be
its quantiles. Nothing has shards x features x draws cells. As many draws as fit go in one pass over the
partials: VALUES_BYTES for all features here, SUMS_BYTES for the sums of a task. One pass does for 100 draws
up to d_sae 100,000 or so. For 100 draws the cost is some microsecond of one core for each feature that fired
in a shard, and 50 for each feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import polars as pl

from pipeline.statistics.resampling import RankIntervals, Resampled, draw_weights, highest_power, ranks
from pipeline.store.derived.features import partials_ranges
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.store.reading.site_access import SiteAccess
from pipeline.tasks import Tasks
from schemas.values import F64, I64, Bool

VALUES_BYTES = 1 << 28
SUMS_BYTES = 1 << 28
RANGE = 1 << 14
COLUMNS = ("feature", "n_active", "mean", "m2", "m3", "m4")

Advance = Callable[[int], None]


class Drawing(NamedTuple):
    """How often shards are drawn, and below how many active rows a feature comes after all others."""

    draws: int
    seed: int
    support: int = 0


def rank_intervals(
    store: SiteAccess,
    site: str,
    features: pl.DataFrame,
    by: Sequence[str],
    tasks: Tasks,
    drawing: Drawing,
    advance: Advance,
) -> dict[str, tuple[I64, I64]]:
    """Of each column the lowest and highest rank (95 %) of every feature, int64 [d_sae], -1 for none.

    `features` is the feature table of these shards; `advance` counts the features x draws that are done.
    Which features come last is decided once, by the table, and not by a draw.
    """
    draws, seed, support = drawing
    rare = (features["n_active"] < support).to_numpy()
    shards, d_sae = store.shard_files(site), store.site(site).d_sae
    counted = np.array([int(shard.read_row_counts()["rows"].sum()) for shard in shards], np.int64)
    centre = features["mean_active"].fill_null(0.0).to_numpy()
    weights, power = draw_weights(draws, len(shards), seed), highest_power(by)
    by_name = {name: RankIntervals(d_sae, draws) for name in by}
    ranges = _ranges(store, site)
    for some in _cut(draws, max(len(each) for each in ranges), power, d_sae * len(by)):
        values = np.empty((len(by), len(some), d_sae))
        task = partial(resample, shards, weights[some], counted, centre, power, tuple(by))
        for place, part in zip(ranges, tasks.map(task, ranges), strict=True):
            values[:, :, place.start : place.stop] = part
            advance(len(place) * len(some))
        for draw in range(len(some)):
            for row, name in enumerate(by):
                by_name[name].add(_ranks(values[row, draw], rare))
    return {name: intervals.interval() for name, intervals in by_name.items()}


def _ranks(values: F64, rare: Bool) -> I64:
    """Ranks of values [d_sae], -1 for NaN; those of rare features begin after the last of the others."""
    others, last = (ranks(np.where(kept, values, np.nan)) for kept in (~rare, rare))
    return np.where(last >= 0, last + others.max(initial=-1) + 1, others)


def _ranges(store: SiteAccess, site: str) -> list[range]:
    """All features in ranges of whole blocks, of RANGE features at the most where blocks are smaller."""
    block = store.site(site).feature_block
    step = max(RANGE // block, 1) * block
    return [
        range(first, min(first + step, some.stop))
        for some in partials_ranges(store, site)
        for first in range(some.start, some.stop, step)
    ]


def _cut(draws: int, widest: int, power: int, n_values: int) -> Iterator[range]:
    """The draws in runs of one pass each."""
    most = max(1, min(SUMS_BYTES // (8 * (power + 1) * widest), VALUES_BYTES // (8 * n_values)))
    for first in range(0, draws, most):
        yield range(first, min(first + most, draws))


def resample(
    shards: Sequence[ShardFiles],
    weights: I64,
    counted: I64,
    centre: F64,
    power: int,
    by: tuple[str, ...],
    features: range,
) -> F64:
    """Values of the columns `by` of some features in each draw, float64 [len(by), B, F], NaN for none."""
    sums = Resampled(centre[features.start : features.stop], len(weights), power)
    for shard, weight in zip(shards, weights.T, strict=True):
        # feature, count and mean, then the central sums m2 .. m<power>
        partials = shard.read_partials(features, list(COLUMNS[: 3 + max(power - 1, 0)]))
        sums.add(partials["feature"].to_numpy().astype(np.int64) - features.start, partials, weight)
    values = np.empty((len(by), len(weights), len(features)))
    for draw, rows in enumerate((weights * counted).sum(axis=1).tolist()):
        table = sums.table(draw, rows)
        for row, name in enumerate(by):
            values[row, draw] = table[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
    return values
