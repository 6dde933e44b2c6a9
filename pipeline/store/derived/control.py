"""The tables `control_features` and `control_l0` of a site with a control, made as those of `stats` are.

A task folds the states of all shards in shard order for a range of features, so the answer has the same bits
for any ranges and any number of workers. A feature has some 40 bytes in each shard's `control.parquet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import polars as pl

from pipeline.statistics import control
from pipeline.store.derived.features import in_batches, site_ranges
from pipeline.store.formats.parquet import read_frame
from pipeline.store.objects.verbs import readable
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.store.reading.site_access import SiteAccess
from pipeline.store.records.catalog import SiteInfo
from pipeline.tasks import Tasks
from schemas.layout import CONTROL

_RANGE_BYTES = 1 << 20
"""Of an average shard's object in one range."""
_SHARDS = 16
"""States in memory before they are merged."""


def control_tables(store: SiteAccess, site: str, tasks: Tasks) -> dict[str, pl.DataFrame]:
    """The tables by name; none of a site without a control."""
    info = store.site(site)
    if info.control is None:
        return {}
    shards = store.shard_files(site)
    l0 = control.combine_l0(tasks.map(_count, in_batches(shards)))
    rows = int(l0.filter(of=control.LEARNT, threshold=0.0)["rows"].sum())
    ranges = site_ranges(store, site, CONTROL, _RANGE_BYTES)
    parts = list(tasks.map(partial(_range, shards, info, rows), ranges))
    features = pl.concat(parts).sort("of", "feature", descending=[True, False])
    return {"control_features": features, "control_l0": l0}


def _range(shards: Sequence[ShardFiles], info: SiteInfo, rows: int, features: range) -> pl.DataFrame:
    assert info.control is not None
    state = control.combine([])
    for start in range(0, len(shards), _SHARDS):
        some = [shard.read_control(features) for shard in shards[start : start + _SHARDS]]
        state = control.combine([state, *some])
    return control.finalize(state, rows, features, info.control, info.architecture)


def _count(shards: Sequence[ShardFiles]) -> pl.DataFrame:
    return control.combine_l0([_l0(shard) for shard in shards])


def _l0(shard: ShardFiles) -> pl.DataFrame:
    assert shard.control_l0 is not None
    with readable(shard.control_l0):
        return read_frame(shard.control_l0)
