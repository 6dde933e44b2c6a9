"""`latentlake coactivation STORE`: which features fire on the same rows.

Of each feature the neighbours of highest Jaccard index |A and B| / |A or B| over rows, exactly. A task counts
a block of features against all, X_b^T X added up shard by shard, X being what is active; the counts of a
block stay below COUNTS_BYTES, and there is never a table of all pairs. The cost is two passes over the pairs
of features active in one row, rows x L0 x L0, and each task reads the indices of every shard's CSR: some 2
microseconds of one core for each activation at L0 64 and d_sae 65,536, and 1.3 GB for each task.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from jobs.console import say
from pipeline.executors.tasks import OneProcess, Tasks
from pipeline.store import FeatureStore
from pipeline.store.reader import strongest
from pipeline.store.shard_files import ShardFiles
from schemas.errors import InputError
from schemas.tables import Schema
from schemas.values import I64

COUNTS_BYTES = 1 << 28
"""Of the counts of one block of features against all."""

INT32_ROWS = np.iinfo(np.int32).max
"""Where a feature is active in more rows, counts are int64."""

NEIGHBOURS: Schema = {
    "feature": pl.UInt32(),
    "neighbour": pl.UInt32(),
    "n_both": pl.Int64(),
    "n_a": pl.Int64(),
    "n_b": pl.Int64(),
    "jaccard": pl.Float64(),
    "rank": pl.UInt16(),
}


def coactivation(
    store: FeatureStore, site: str, tasks: Tasks | None = None, *, k: int = 20, support: int = 10
) -> pl.DataFrame:
    """Write the table `neighbours` of a site (schema `NEIGHBOURS`); return it.

    Of each feature `a` the `k` features `b` of highest `jaccard` = n_both / (n_a + n_b - n_both), rank 0
    first, equal ones by their number; n_both, n_a and n_b count the rows in which both are active, a is, b
    is. Pairs with n_both < `support` are left out. Raises InputError when no shard is committed.
    """
    began = time.monotonic()
    shards, d_sae = store.shard_files(site), store.site(site).d_sae
    if not shards:
        raise InputError(f"site {site!r} has no committed shard: run `latentlake extract` first")
    n_active = _n_active(shards, d_sae)
    width = max(1, COUNTS_BYTES // (_count_type(n_active).itemsize * d_sae))
    blocks = [range(first, min(first + width, d_sae)) for first in range(0, d_sae, width)]
    find = partial(neighbours, shards, n_active, k, support)
    table = pl.concat([pl.DataFrame(schema=NEIGHBOURS), *(tasks or OneProcess()).map(find, blocks)])
    store.write_table(site, "neighbours", table)
    say(
        f"[bold]coactivation[/] {site}: {table.height:,} neighbours of {table['feature'].n_unique():,} "
        f"features ({time.monotonic() - began:.1f} s)"
    )
    return table


def _n_active(shards: Sequence[ShardFiles], d_sae: int) -> I64:
    """Rows in which each feature is active, int64 [d_sae]."""
    n_active = np.zeros(d_sae, np.int64)
    for shard in shards:
        active = shard.read_partials(range(d_sae), ["feature", "n_active"])
        n_active[active["feature"].to_numpy()] += active["n_active"].to_numpy()
    return n_active


def _count_type(n_active: I64) -> np.dtype[Any]:
    """Of counts over all shards; in one shard they are below 2^31, as its rows are."""
    return np.dtype(np.int64 if n_active.max(initial=0) > INT32_ROWS else np.int32)


def neighbours(
    shards: Sequence[ShardFiles], n_active: I64, k: int, support: int, features: range
) -> pl.DataFrame:
    """The rows of the table `neighbours` of some features."""
    both = np.zeros((len(features), len(n_active)), _count_type(n_active))
    for shard in shards:
        active = shard.read_pattern()
        some = shard.read_pattern_of(features, active)
        counts = some @ active
        for place in range(len(features)):
            row = slice(counts.indptr[place], counts.indptr[place + 1])
            both[place, counts.indices[row]] += counts.data[row]
    found = [_nearest(feature, both[feature - features.start], n_active, k, support) for feature in features]
    return pl.concat([pl.DataFrame(schema=NEIGHBOURS), *found])


def _nearest(feature: int, both: NDArray[Any], n_active: I64, k: int, support: int) -> pl.DataFrame:
    others = np.flatnonzero(both >= support)
    others = others[others != feature]
    n_both = both[others].astype(np.int64)
    jaccard = n_both / (n_active[feature] + n_active[others] - n_both)
    best = strongest(jaccard, k)
    columns = {
        "feature": np.full(len(best), feature),
        "neighbour": others[best],
        "n_both": n_both[best],
        "n_a": np.full(len(best), n_active[feature]),
        "n_b": n_active[others[best]],
        "jaccard": jaccard[best],
        "rank": np.arange(len(best)),
    }
    return pl.DataFrame(columns, schema=NEIGHBOURS)


if __name__ == "__main__":
    import sys

    from jobs.cli import main

    main(["coactivation", *sys.argv[1:]])
