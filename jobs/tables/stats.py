"""`latentlake stats STORE`: partials of all shards become the feature table, L0 counts and examples.

Partials merge by a left fold in shard order, so the tables are bit-identical however the shards were made.
"""

from __future__ import annotations

import time

import polars as pl

from jobs.terminal.console import say
from pipeline.statistics import l0 as row_statistics
from pipeline.store import FeatureStore
from pipeline.store.derived.control import control_tables
from pipeline.store.derived.features import check_sums, site_tables
from pipeline.store.reading.site_access import require_committed
from pipeline.tasks import OneProcess, Tasks


def stats(store: FeatureStore, site: str, tasks: Tasks | None = None) -> pl.DataFrame:
    """Write the tables `features`, `l0` and `examples` of a site; return the feature table.

    Of a site with a control also `control_features` and `control_l0`.

    Raises InputError when no shard of the site is committed, and for a damaged file that they are made from.
    """
    began = time.monotonic()
    require_committed(store, site)
    tasks = tasks or OneProcess()
    check_sums(store, site, tasks)
    tables = site_tables(store, site, tasks) | control_tables(store, site, tasks)
    for name, made in tables.items():
        store.write_table(site, name, made)
    table, row_counts = tables["features"], tables["l0"]
    active = table.filter(pl.col("n_active") > 0).height
    mean_l0 = row_statistics.l0_summary(row_counts)["mean"][0] or 0.0
    say(
        f"[bold]stats[/] {site}: {active:,} of {table.height:,} features fired on "
        f"{store.totals(site).counted_rows:,} counted rows, mean L0 {mean_l0:.1f} "
        f"({time.monotonic() - began:.1f} s)"
    )
    return table
