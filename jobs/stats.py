"""`latentlake stats STORE`: partials of all shards become the feature table, L0 counts and examples.

Partials merge by a left fold in shard order, so the tables are bit-identical however the shards were made.
"""

from __future__ import annotations

import time

import polars as pl

from jobs.console import say
from pipeline import statistics
from pipeline.statistics import rows as row_statistics
from pipeline.statistics.examples import example_table
from pipeline.store import FeatureStore
from schemas.errors import InputError


def stats(store: FeatureStore, site: str) -> pl.DataFrame:
    """Write the tables `features`, `l0` and `examples` of a site; return the feature table.

    Raises InputError when no shard of the site is committed.
    """
    began = time.monotonic()
    if not store.receipts(site):
        raise InputError(f"site {site!r} has no committed shard: run `latentlake extract` first")
    state = store.fold_partials(site)
    row_counts = store.fold_row_counts(site)
    table = statistics.feature_table(state, store.totals(site), store.sites[site].d_sae, row_counts)
    store.write_table(site, "features", table)
    store.write_table(site, "l0", row_counts)
    shards = ((store.postings(site, record.name), record.row_start) for record in store.committed(site))
    store.write_table(site, "examples", example_table(shards, state))
    active = table.filter(pl.col("n_active") > 0).height
    mean_l0 = row_statistics.l0_summary(row_counts)["mean"][0] or 0.0
    say(
        f"[bold]stats[/] {site}: {active:,} of {table.height:,} features fired on "
        f"{store.totals(site).counted_rows:,} counted rows, mean L0 {mean_l0:.1f} "
        f"({time.monotonic() - began:.1f} s)"
    )
    return table


if __name__ == "__main__":
    import sys

    from jobs.cli import main

    main(["stats", *sys.argv[1:]])
