"""`latentlake coactivation STORE`: which features fire on the same rows, and which point the same way.

Tables `neighbours` (by Jaccard index, NPMI, phi and conditional frequency, see
`jobs.tables.pairs.association`) and `decoder_neighbours` (by cosine of decoder rows). Both are made by blocks
of features and written as these come: there is never a table of all pairs, and a process holds about 1 GB at
most.

The cost of neighbours goes with the pairs of features active in one row, rows x L0 x L0, plus reading the
indices of all shards once for each block. At L0 64, 10^9 activations and 65,536 features that was 0.9
microseconds of a core for an activation (15 minutes in all) on a machine busy with other work, two fifths of
it reading, in 96 blocks of 680 features; there are 43 of 1,524 now, however many activations. At 10^6
features there are some 320 blocks of 3,200: a feature has fewer pairs to hold. What decoder neighbours cost
is stated in `jobs.tables.pairs.directions`; `--no-decoder` leaves them out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated

import numpy as np
import polars as pl
import typer

from jobs.tables.pairs.association import MEASURES, PairCounts, highest
from jobs.tables.pairs.directions import Directions, directions_of, nearest
from jobs.tables.pairs.pair_counts import cut, mean_company, tallies
from jobs.terminal.console import say
from jobs.terminal.progress import track
from pipeline.store import FeatureStore
from pipeline.store.reading.shard_files import ShardFiles, read_n_active
from pipeline.store.reading.site_access import require_committed
from pipeline.tasks import OneProcess, Tasks
from schemas.layout import StorePath
from schemas.tables.tables import DECODER_NEIGHBOURS, NEIGHBOURS
from schemas.values import I64


def coactivation(
    store: FeatureStore,
    site: str,
    tasks: Tasks | None = None,
    *,
    k: Annotated[int, typer.Option("-k", help="Number of neighbours of each feature.", min=1)] = 20,
    support: Annotated[int, typer.Option(help="Number of rows that a pair must share.", min=1)] = 10,
    decoder: Annotated[
        bool,
        typer.Option(
            "--decoder/--no-decoder",
            help="Also find neighbours by decoder cosine (takes hours for 10^6 features).",
        ),
    ] = True,
) -> list[StorePath]:
    """Write the tables `neighbours` and, with `decoder`, `decoder_neighbours` of a site.

    `neighbours` (schema `NEIGHBOURS`): of each feature and each measure the `k` features of highest value,
    equal ones by their number, among those active in at least `support` rows in which it is active too; over
    all counted rows, exactly. `decoder_neighbours` (schema `DECODER_NEIGHBOURS`): the `k` of largest cosine
    among all features, dead ones included; not of a synthetic site, which has no decoder. Raises InputError
    when no shard is committed.
    """
    shards = store.shard_files(site)
    require_committed(store, site)
    tasks = tasks or OneProcess()
    began, counter = time.monotonic(), _RowCounter()
    n_active = read_n_active(shards, range(shards[0].d_sae))
    blocks = cut(n_active, mean_company(shards), shards[0].d_sae)
    of_block = partial(neighbours, shards, n_active, store.totals(site).counted_rows, k, support)
    tables = tasks.map(of_block, blocks)
    parts = counter.count(track(tables, "coactivation", len(blocks), "blocks of features"))
    written = [store.write_table_parts(site, "neighbours", NEIGHBOURS, parts)]
    say(
        f"[bold]coactivation[/] {site}: {counter.rows:,} neighbours of {counter.features:,} features that "
        f"share {support:,} rows or more with another ({time.monotonic() - began:.1f} s)"
    )
    if not decoder:
        return written
    directions = directions_of(store, site)
    if directions.width is None:
        say(f"[yellow]coactivation[/] {site}: a synthetic site has no decoder, so no decoder neighbours")
        return written
    began, counter, blocks = time.monotonic(), _RowCounter(), directions.blocks()
    tables = tasks.map(partial(decoder_neighbours, directions, k), blocks)
    parts = counter.count(track(tables, "decoder cosines", len(blocks), "blocks of features"))
    written.append(store.write_table_parts(site, "decoder_neighbours", DECODER_NEIGHBOURS, parts))
    say(
        f"[bold]coactivation[/] {site}: {counter.rows:,} neighbours by decoder cosine of "
        f"{counter.features:,} features ({time.monotonic() - began:.1f} s)"
    )
    return written


class _RowCounter:
    """Counts the rows and features of a stream of tables."""

    rows, features = 0, 0

    def count(self, parts: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        for part in parts:
            self.rows += part.height
            self.features += part["feature"].n_unique()
            yield part


def neighbours(
    shards: Sequence[ShardFiles], n_active: I64, rows: int, k: int, support: int, features: range
) -> pl.DataFrame:
    """The rows of the table `neighbours` of some features; `rows` are all counted rows of the shards."""
    pairs = [(shard, shard) for shard in shards]
    by_feature = [
        _nearest(feature, *tally.at_least(support), n_active, rows, k)
        for feature, tally in tallies(pairs, n_active, len(n_active), features)
    ]
    neighbour, n_both, lengths = (np.concatenate(columns) for columns in zip(*by_feature, strict=True))
    # `lengths` has an entry for each feature and measure, a feature's measures one after another
    measure = np.repeat(np.arange(len(lengths)) % len(MEASURES), lengths)
    feature = np.repeat(np.repeat(features, len(MEASURES)), lengths)
    counts = PairCounts(n_both, n_active[feature], n_active[neighbour], rows)
    columns = {
        "feature": feature,
        "neighbour": neighbour,
        "by": pl.Series(list(MEASURES)).gather(measure),
        # the place in the whole less the place where the feature's measure begins
        "rank": np.arange(len(feature)) - np.repeat(np.cumsum(lengths) - lengths, lengths),
        **counts._asdict(),
        **{name: value(counts) for name, value in MEASURES.items()},
    }
    frame = pl.DataFrame({name: columns[name] for name in NEIGHBOURS}).cast(pl.Schema(NEIGHBOURS))
    return frame.with_columns(pl.col(list(MEASURES)).fill_nan(None))


def _nearest(
    feature: int, others: I64, n_both: I64, n_active: I64, rows: int, k: int
) -> tuple[I64, I64, I64]:
    """The nearest by each measure, one measure after another: numbers, n_both, how many of each measure."""
    is_other = others != feature
    others, n_both = others[is_other], n_both[is_other]
    if not len(others):  # perhaps there is no counted row
        return others, n_both, np.zeros(len(MEASURES), np.int64)
    counts = PairCounts(n_both, int(n_active[feature]), n_active[others], rows)
    best = [highest(measure(counts), k) for measure in MEASURES.values()]
    places = np.concatenate(best)
    return others[places], n_both[places], np.array([len(indices) for indices in best])


def decoder_neighbours(directions: Directions, k: int, features: range) -> pl.DataFrame:
    """The rows of the table `decoder_neighbours` of some features."""
    pairs = nearest(directions, directions, k, features)
    columns = {
        "feature": pairs.feature,
        "neighbour": pairs.other,
        "rank": pairs.rank,
        "cosine": pairs.cosine,
    }
    return pl.DataFrame(columns).cast(pl.Schema(DECODER_NEIGHBOURS))
