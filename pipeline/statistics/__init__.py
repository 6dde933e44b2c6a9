"""Statistics of stored activations: a partial per shard, merged in shard order, read off as a feature table.

To add one: write a class that follows `statistic.Statistic`, put it in `STATISTICS`, and inherit its test
from `tests.statistics.conformance.StatisticConformance`. Merging is a left fold in shard order, feature by
feature: its bits depend on the shards alone, not on how many are merged at once, nor on how features are cut
into blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module

import numpy as np
import polars as pl

from pipeline.statistics.features.ragged import runs_within
from pipeline.statistics.features.statistic import FEATURE, Statistic
from schemas.errors import InputError
from schemas.tables.tables import Schema
from schemas.values import Postings, TokenShard, Totals

STATISTICS = {
    "moments": "pipeline.statistics.features.moments:Moments",
    "coverage": "pipeline.statistics.features.coverage:Coverage",
    "histogram": "pipeline.statistics.features.histogram:Histogram",
    "samples": "pipeline.statistics.features.samples:Samples",
}

DENOMINATORS: Schema = dict.fromkeys(("rows", "counted_rows", "contexts", "documents"), pl.Int64())

BLOCK_NNZ = 1 << 21
"""Activations processed together: temporaries stay small, and no number depends on it."""


@cache
def load_statistic(name: str) -> Statistic:
    """The statistic registered as `name`."""
    if name not in STATISTICS:
        raise InputError(f"no statistic {name!r}; known: {', '.join(STATISTICS)}")
    module, _, cls = STATISTICS[name].partition(":")
    statistic: Statistic = getattr(import_module(module), cls)()
    return statistic


def partials_schema() -> Schema:
    """Columns of a shard's partials, and of the state that `combine` makes of them."""
    return FEATURE | {name: dtype for s in _statistics() for name, dtype in s.state.items()}


def feature_schema() -> Schema:
    """Columns of the feature table."""
    return FEATURE | DENOMINATORS | {name: dtype for s in _statistics() for name, dtype in s.table.items()}


def empty_state() -> pl.DataFrame:
    """The state of no shard."""
    return pl.DataFrame(schema=partials_schema())


def partials(postings: Postings, shard: TokenShard) -> pl.DataFrame:
    """All statistics of one shard, a row per feature that fired (schema `partials_schema`)."""
    assert np.isfinite(postings.values).all(), "an activation is not finite"
    assert postings.values.all(), "a stored activation is 0"
    assert shard.counted[postings.rows].all(), "a row that is not counted has activations"
    # in runs of whole features of about BLOCK_NNZ activations
    parts = (postings.part(run.start, run.stop) for run in runs_within(postings.offsets, BLOCK_NNZ))
    blocks = [_join_horizontally([s.partial(part, shard) for s in _statistics()]) for part in parts]
    return pl.concat([empty_state(), *blocks])


def combine(states: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Merge states, those of earlier shards first (schema `partials_schema`)."""
    return _join_horizontally(
        [s.combine([state.select(*FEATURE, *s.state) for state in states]) for s in _statistics()]
    )


def finalize(state: pl.DataFrame, totals: Totals, features: range) -> pl.DataFrame:
    """The feature table's rows of some features, from a state that holds no other feature."""
    last = state["feature"].max()
    if isinstance(last, int) and last >= features.stop:
        raise InputError(
            f"partials hold feature {last}, the SAE has {features.stop}: run `latentlake verify`"
        )
    # statistics number features from 0: those of a range are moved there and back
    first, moved = pl.lit(features.start, pl.UInt32), state.with_columns(pl.col("feature") - features.start)
    columns = [s.finalize(moved.select(*FEATURE, *s.state), totals, len(features)) for s in _statistics()]
    denominators = {name: pl.lit(getattr(totals, name), pl.Int64) for name in DENOMINATORS}
    table = _join_horizontally(columns).with_columns(pl.col("feature") + first, **denominators)
    return table.select(*feature_schema())


def check_counts(active: int, totals: Totals, row_counts: pl.DataFrame) -> None:
    """InputError where `active`, the activations that partials count, are not those of the L0 counts."""
    rows = int(row_counts["rows"].sum())
    nnz = int((row_counts["l0"].cast(pl.Int64) * row_counts["rows"]).sum())
    if (nnz, rows) != (active, totals.counted_rows):
        raise InputError(
            f"row counts hold {nnz} activations in {rows} rows, but partials hold {active} activations and "
            f"token shards {totals.counted_rows} counted rows: run `latentlake verify`"
        )


def _statistics() -> list[Statistic]:
    return [load_statistic(name) for name in STATISTICS]


def _join_horizontally(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """Frames over the same features as one."""
    assert all(frame["feature"].equals(frames[0]["feature"]) for frame in frames), "features differ"
    return pl.concat([frames[0], *(frame.drop("feature") for frame in frames[1:])], how="horizontal")
