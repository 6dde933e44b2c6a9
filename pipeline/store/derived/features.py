"""The tables of `stats`, made from partials and postings by ranges of features.

A task takes a range of whole feature blocks: it folds the partials of all shards in shard order, a few of
them in memory, reads off its rows of the feature table, and finds its features' examples. Ranges are
concatenated, so the answer has the same bits for any ranges and any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline import statistics
from pipeline.statistics.examples.examples import Strongest, example_table
from pipeline.statistics.l0 import combine_counts
from pipeline.store.formats.postings import PostingsFile
from pipeline.store.objects.verbs import sha256_file
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.store.reading.site_access import SiteAccess
from pipeline.tasks import Tasks
from schemas.errors import InputError
from schemas.layout import CONTROL, CONTROL_L0, PARTIALS, ROW_COUNTS, StorePath
from schemas.records import DataObject
from schemas.values import Totals

_BATCH_BYTES = 64 << 20
"""Partials in memory before they are merged."""
_RANGE_BYTES = 1 << 20
"""Of an average shard's partials in one range: less does not pay for opening the file once more, and of
twice as much there are so few ranges that one core is done long before the other."""
_COUNT_FILES = 512
_ROW_GROUPS_SINCE = 3
"""Format version from which on partials have row groups; older ones are read whole for every range."""
_WHOLE_RANGE = 1 << 18
"""Features in a range of such partials: 1 to 3 kB each in memory."""


def site_tables(store: SiteAccess, site: str, tasks: Tasks) -> dict[str, pl.DataFrame]:
    """The tables `features`, `l0` and `examples`."""
    info, shards, totals = store.site(site), store.shard_files(site), store.totals(site)
    counts = combine_counts(tasks.map(_count_rows, in_batches(shards)))
    one = "feature_major" not in info.layouts  # a CSR is read whole, so by one task
    ranges = [range(info.d_sae)] if one else partials_ranges(store, site)
    features, examples, active = zip(*tasks.map(partial(_range_tables, shards, totals), ranges), strict=True)
    statistics.check_counts(sum(active), totals, counts)
    return {"features": pl.concat(features), "l0": counts, "examples": pl.concat(examples)}


def check_sums(store: SiteAccess, site: str, tasks: Tasks) -> None:
    """Compare what the tables are summed from with its checksums; InputError that names a damaged file.

    A flipped bit would else be a wrong number, or one shard less. Some 1 GB of partials for 10^9 activations.
    """
    summed = [f"{site}/{name}" for name in (PARTIALS, ROW_COUNTS, CONTROL, CONTROL_L0)]
    objects = (
        (store.object_path(site, shard, item.path.removeprefix(f"{site}/")), item)
        for shard, receipt in store.receipts(site).items()
        for item in receipt.objects
        if item.path in summed
    )
    for problem in tasks.map(_problem, objects):
        if problem is not None:
            raise InputError(
                f"{problem}: run `latentlake verify`, and restore what it names from a copy of the store"
            )


def _problem(item: tuple[StorePath, DataObject]) -> str | None:
    """What is wrong with an object, in words."""
    path, record = item
    if not path.exists():
        return f"{path} is missing"
    return None if sha256_file(path) == record.sha256 else f"{path} is damaged: its sha256 differs"


def partials_ranges(store: SiteAccess, site: str) -> list[range]:
    """All features in ranges of which a task reads the partials of every shard."""
    info = store.site(site)
    if store.plans[info.pass_name].format_version >= _ROW_GROUPS_SINCE:
        return site_ranges(store, site, PARTIALS, _RANGE_BYTES)
    step = max(_WHOLE_RANGE // info.feature_block, 1) * info.feature_block
    return [range(first, min(first + step, info.d_sae)) for first in range(0, info.d_sae, step)]


def site_ranges(store: SiteAccess, site: str, name: str, range_bytes: int) -> list[range]:
    """All features in ranges of whole blocks, with some `range_bytes` of an average shard's object each."""
    info, path = store.site(site), f"{site}/{name}"
    sizes = [o.bytes for receipt in store.receipts(site).values() for o in receipt.objects if o.path == path]
    # edges are block numbers, evenly spaced, so that no range shares a row group with another
    blocks = -(-info.d_sae // info.feature_block)
    n = min(max(round(sum(sizes) / max(len(sizes), 1) / range_bytes), 1), blocks)
    edges = [min(blocks * i // n * info.feature_block, info.d_sae) for i in range(n + 1)]
    return [range(first, last) for first, last in pairwise(edges)]


def fold(shards: Iterable[ShardFiles], features: range, activity: Activity | None = None) -> pl.DataFrame:
    """The merged state of some features, from the partials of `shards` in this order."""
    state, batch, size = statistics.empty_state(), list[pl.DataFrame](), 0
    for shard in shards:
        batch.append(shard.read_partials(features))
        size += int(batch[-1].estimated_size())
        if activity is not None:
            activity.keep(shard, batch[-1])
        if size > _BATCH_BYTES:
            state, batch, size = statistics.combine([state, *batch]), [], 0
    return statistics.combine([state, *batch])


class Activity:
    """How often and how strongly a range's features fire in each shard; of the first it stays in memory."""

    COLUMNS = ("feature", "n_active", "min_activation", "max_activation")

    def __init__(self, features: range) -> None:
        self._features = features
        self._kept: dict[str, pl.DataFrame] = {}
        self._bytes = 0

    def keep(self, shard: ShardFiles, partials: pl.DataFrame) -> None:
        """Keep it of a shard whose partials are at hand, up to some bytes."""
        if self._bytes < _BATCH_BYTES:
            kept = self._kept[shard.record.name] = partials.select(self.COLUMNS)
            self._bytes += int(kept.estimated_size())

    def of(self, shard: ShardFiles) -> list[NDArray[Any]]:
        """Features [F], ascending, n_active [F], min_activation [F], max_activation [F]."""
        kept = self._kept.get(shard.record.name)
        if kept is None:
            kept = shard.read_partials(self._features, list(self.COLUMNS))
        return [kept[name].to_numpy() for name in self.COLUMNS]


def _range_tables(
    shards: Sequence[ShardFiles], totals: Totals, features: range
) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """The rows of `features` and of `examples` of some features, and how often they fire."""
    activity = Activity(features)
    state = fold(shards, features, activity)
    table = statistics.finalize(state, totals, features)
    half = bool(shards) and shards[0].activation_dtype == "float16"
    strongest = Strongest(state, np.float16 if half else np.float32)
    for shard in shards:
        _show(shard, features, activity, strongest)
    return table, example_table(strongest, state), int(state["n_active"].sum())


def _show(shard: ShardFiles, features: range, activity: Activity, strongest: Strongest) -> None:
    """Search one shard for its strongest rows; of row groups that can hold none, nothing is read."""
    if shard.postings is None:
        postings = shard.read_postings()
        rows = postings.rows + shard.record.row_start
        strongest.update(postings.features, np.diff(postings.offsets), postings.values, lambda: rows)
        return
    file, active = PostingsFile(shard.postings), activity.of(shard)
    for groups in file.runs_of(features):
        first, last = file.first[groups[0]], file.last[groups[-1]]
        # partials are of the same features in the same order: a run of postings is a run of these
        place = slice(*np.searchsorted(active[0], [first, last + 1]))
        fired, counts, low, high = (column[place] for column in active)
        if counts.sum() != file.nnz_of(groups):
            raise InputError(
                f"{shard.postings} and {shard.partials} do not count the same activations of features "
                f"{first} to {last}: run `latentlake verify`"
            )
        if strongest.may_hold(fired, low, high):
            (values,) = file.read_groups(groups, ("activation",))
            strongest.update(fired, counts, values, partial(_rows, file, groups))


def _rows(file: PostingsFile, groups: list[int]) -> NDArray[Any]:
    return np.asarray(file.read_groups(groups, ("row",))[0])


def in_batches(shards: Sequence[ShardFiles]) -> Iterator[Sequence[ShardFiles]]:
    """So many shards in a task as are worth one, where each has a small file to be read."""
    for start in range(0, len(shards), _COUNT_FILES):
        yield shards[start : start + _COUNT_FILES]


def _count_rows(shards: Sequence[ShardFiles]) -> pl.DataFrame:
    return combine_counts([shard.read_row_counts() for shard in shards])
