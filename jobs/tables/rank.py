"""`latentlake rank STORE`: features ordered by columns of their tables, and windows of such an order.

How stable a rank is follows from the bootstrap over shards (`pipeline.store.derived.rank_intervals`, which
states its cost).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import polars as pl
import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from jobs.command.options import AS_JSON
from jobs.tables.ranking import RANKING_SUMMARY, RANKINGS, SUPPORT, ranking
from jobs.tables.selection import Ranks, parse_ranks
from jobs.terminal.console import console, say
from jobs.terminal.names import any_named, name_cell
from jobs.terminal.progress import counting
from pipeline.statistics.resampling import FEWEST_SHARDS, can_resample
from pipeline.store import FeatureStore
from pipeline.store.derived.rank_intervals import Drawing, rank_intervals
from pipeline.store.records.tables import write_table
from pipeline.tasks import OneProcess, Tasks
from schemas.errors import InputError
from schemas.layout import StorePath
from schemas.run.file import Rank, RunFile
from schemas.sentences import several
from schemas.tables.tables import PROFILE

DEFAULT_BY = Rank.model_validate({}).by
SHOWN = (
    "n_active",
    "frequency",
    "mean_all",
    "std_all",
    "sigma_over_mu",
    "mean_active",
    "std_active",
    "max_activation",
)
"""Statistics shown next to each feature of a window."""

PRINTED = ("n_active", "mean_all", "mean_active", "max_activation")
"""Those of them that are printed: what fits 80 columns (`n_active` gives the frequency too)."""


DRAWS = 100


def command(
    store: FeatureStore,
    site: str,
    tasks: Tasks | None = None,
    run_file: RunFile | None = None,
    *,
    by: Annotated[
        list[str] | None, typer.Option(help="Column of the table features or profile; may be repeated.")
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(
            help="Print these ranks by each --by: START:STOP, or COLUMN:START:STOP; may be repeated. As in "
            "the tables, ranks count from 0 and STOP is excluded: 0:20 is #1 to #20, 2000:2050 is #2,001 to "
            "#2,050."
        ),
    ] = None,
    support: Annotated[
        int | None,
        typer.Option(
            help="Features with fewer active rows come last; 0: rank all features together. Default: "
            "rank.support of the run file, or 10.",
            min=0,
        ),
    ] = None,
    ascending: Annotated[
        bool, typer.Option("--ascending", help="Print the window with the smallest values first.")
    ] = False,
    draws: Annotated[
        int,
        typer.Option(help="Number of resamples of the shards, for the intervals of ranks; 0: none.", min=0),
    ] = DRAWS,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.", min=0)] = 0,
) -> Annotated[list[pl.DataFrame] | None, AS_JSON]:
    """Rank by the columns given and those of the run file, or print and return windows of the ranks."""
    section = run_file.rank if run_file else Rank.model_validate({})
    columns = tuple(dict.fromkeys([*(by or ()), *section.by]))
    floor = section.support if support is None else support
    if window:
        return show_windows(store, site, by or columns[:1], window, descending=not ascending, support=floor)
    rank(store, site, columns, tasks, draws=draws, seed=seed, support=floor)
    return None


def rank(
    store: FeatureStore,
    site: str,
    by: Sequence[str] = DEFAULT_BY,
    tasks: Tasks | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    support: int = SUPPORT,
) -> list[StorePath]:
    """Write the tables `rankings` and `ranking_summary` of a site, from its tables `features` and `profile`.

    `rankings`: by, rank (u32 from 0, the largest value first, equal values by feature), feature, value (f64).
    Features with fewer than `support` active rows come after all others, in the same order, because
    their statistics are mostly chance. Values go by their sign: features with a negative mean come last of
    those by sigma_over_mu. A feature whose value is null, such as sigma_over_mu of one that never fires or
    whose mean is 0, has no rank. `ranking_summary` says for each `by` how many are `ranked` and how many
    `without_value`. `rank_low` and `rank_high` (u32): where 95 % of the feature's ranks lie in `draws` draws
    of as many shards, those draws left out in which it has no value. They are null with one shard, with 0
    draws, from a stale feature table, and by columns that are no moments
    (`pipeline.statistics.resampling.POWERS`). Both tables are as fresh as the tables they are from. Raises
    InputError where one is missing, or a column not in it or no number.
    """
    names = list(dict.fromkeys(by))
    features, made_from = _features(store, site, names)
    rankings = [ranking(features, name, support=support) for name in names]
    # a draw takes the shards that there are, which are not those of a stale table
    if names and draws and made_from == store.receipts_digest(site):
        drawing = Drawing(draws, seed, support)
        rankings = _with_intervals(store, site, features, rankings, tasks or OneProcess(), drawing)
    counts = [each.height for each in rankings]
    summary = pl.DataFrame(
        {"by": names, "ranked": counts, "without_value": [features.height - n for n in counts]},
        schema=RANKING_SUMMARY,
    )
    summaries = ", ".join(
        f"{name} ({_ranking_summary(table)})" for name, table in zip(names, rankings, strict=True)
    )
    say(f"[bold]rank[/] {site}: by {summaries}")
    if names and (last := _support_note(features, names[0], support)):
        say(f"  {last}")
    tables = {"rankings": pl.concat([pl.DataFrame(schema=RANKINGS), *rankings]), "ranking_summary": summary}
    return [write_table(store.layout, site, name, table, made_from) for name, table in tables.items()]


def _support_note(features: pl.DataFrame, by: str, support: int) -> str | None:
    """How many features come last, as they have too few active rows."""
    rare = features.filter(pl.col("n_active") < support, pl.col(by).is_not_null()).height
    if not rare:
        return None
    return (
        f"the {several(rare, 'feature')} with fewer than {support:,} active rows come last, after the "
        f"{several(features[by].count() - rare, 'other')} (--support 0 ranks all together)"
    )


def _ranking_summary(table: pl.DataFrame) -> str:
    """How many features a ranking has, and how stable their ranks are."""
    width = (table["rank_high"].cast(pl.Int64) - table["rank_low"].cast(pl.Int64)).median()
    stable = f", a 95 % interval of {width:,.0f} ranks in the median" if isinstance(width, float) else ""
    return f"{table.height:,} features{stable}"


def _features(store: FeatureStore, site: str, by: Sequence[str]) -> tuple[pl.DataFrame, str]:
    """The feature table, with the columns of `profile` where one is used; digest of their receipts."""
    features, digests = store.scan_features(site).collect(), [store.made_from(site, "features")]
    if set(by) & set(PROFILE) - set(features.columns):
        profile = store.scan_table(site, "profile").collect()
        features = features.join(profile, on="feature", how="left", maintain_order="left")
        digests.append(store.made_from(site, "profile"))
    # of two tables the one that is not of all receipts decides: what is made of both is as old
    stale = [digest for digest in digests if digest != store.receipts_digest(site)]
    return features, (stale or digests)[0]


def _with_intervals(
    store: FeatureStore,
    site: str,
    features: pl.DataFrame,
    rankings: list[pl.DataFrame],
    tasks: Tasks,
    drawing: Drawing,
) -> list[pl.DataFrame]:
    """The rankings with `rank_low` and `rank_high` where they can be computed; reports where not."""
    by = [table["by"][0] for table in rankings if table.height]
    possible, shards = [name for name in by if can_resample(name)], len(store.receipts(site))
    if rest := [name for name in by if name not in possible]:
        say(f"[yellow]note[/]: ranks by {', '.join(rest)} have no interval; only moments have intervals")
    if shards < FEWEST_SHARDS:
        what = "ranks have no interval" if shards < 2 else "intervals of ranks are too narrow to trust"
        say(
            f"[yellow]note[/]: {what} from {several(shards, 'shard')}, "
            f"because intervals come from resampling shards: use {FEWEST_SHARDS} or more "
            "(tokens.shard_tokens)"
        )
    if shards < 2 or not possible:
        return rankings
    with counting(f"rank {site}", drawing.draws * features.height, "features x draws") as advance:
        intervals = rank_intervals(store, site, features, possible, tasks, drawing, advance)
    with_intervals = []
    for table in rankings:
        if interval := intervals.get(table["by"][0] if table.height else ""):
            # an interval has an entry for each feature, -1 where there is none
            ends = [pl.Series(end[table["feature"].to_numpy()]) for end in interval]
            low, high = (end.set(end < 0, None).cast(pl.UInt32) for end in ends)
            table = table.with_columns(rank_low=low, rank_high=high)
        with_intervals.append(table)
    return with_intervals


def window(
    store: FeatureStore,
    site: str,
    by: str,
    start: int,
    stop: int,
    descending: bool = True,
    support: int = SUPPORT,
) -> pl.DataFrame:
    """Ranks `start` up to but not including `stop` of the features by any numeric column, rank 0 first.

    They are ranks as `ranking` has them; with `support` 0 those of the column's values alone.

    Columns: rank, feature, the column itself, then those of SHOWN that are not it. A window that reaches past
    the last rank is cut there; one that starts past it, or is empty, is an InputError.
    """
    features, _ = _features(store, site, [by])
    order = ranking(features, by, descending=descending, support=support)
    if not 0 <= start < stop:
        raise InputError(f"ranks {start} to {stop} are not a window: give START:STOP with 0 <= START < STOP")
    if not order.height:
        raise InputError(f"no feature of site {site!r} has a {by}, so none has a rank: choose another column")
    if start >= order.height:
        raise InputError(
            f"ranks {start} to {stop} by {by}: {order.height} of {features.height} features have a value; "
            "start below that"
        )
    statistics = features.select(*dict.fromkeys(["feature", by, *SHOWN]))
    return (
        order.slice(start, stop - start)
        .select("rank", "feature")
        .join(statistics, on="feature", how="left", maintain_order="left")
    )


def show_windows(
    store: FeatureStore,
    site: str,
    by: Sequence[str],
    texts: Sequence[str],
    *,
    descending: bool = True,
    support: int = SUPPORT,
) -> list[pl.DataFrame]:
    """Print and return the windows that `texts` name, each by every column of `by`, or by its own."""
    windows, order = list[pl.DataFrame](), "largest" if descending else "smallest"
    for column, start, stop in dict.fromkeys(_parsed(text, column) for text in texts for column in by):
        rows = window(store, site, column, start, stop, descending, support)
        windows.append(rows.select(pl.lit(column).alias("by"), *rows.columns))
        # ranks count from 0; for people the first is #1
        first, last = int(rows["rank"][0]) + 1, int(rows["rank"][-1]) + 1
        rows = rows.select(*dict.fromkeys(["rank", "feature", column, *PRINTED]))
        if descending:
            rows = _with_stored_intervals(store, site, column, rows)
        title = f"{site} by {column}, {order} first: #{first:,} to #{last:,}"
        table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
        rows = rows.with_columns(pl.format("#{}", pl.col("rank") + 1).alias("rank"))
        for name in rows.columns:
            # names wrap where they may; a number that is cut would be another number
            table.add_column(name.replace("_", "_\n"), justify="right", overflow="fold")
        names = store.names(site, rows["feature"])
        is_named = any_named(names, rows["feature"])
        if is_named:
            table.add_column("name")
        for row in rows.iter_rows(named=True):
            cells = (str(row[name]) if name == "feature" else _cell(row[name]) for name in rows.columns)
            table.add_row(*cells, *([name_cell(names, row["feature"])] if is_named else []))
        console.print(table)
        features = _features(store, site, [column])[0]
        if last_ones := _support_note(features, column, support):
            say(escape(last_ones[0].upper() + last_ones[1:]))
        if without := features.height - ranking(features, column, support=0).height:
            say(f"{several(without, 'feature')} of {features.height:,} have no {escape(column)} and no rank")
    return windows


def _parsed(text: str, by: str) -> Ranks:
    """START:STOP of the column `by`, or with its own column as `parse_ranks` reads it."""
    first, _, last = text.partition(":")
    if text.startswith("top:") or text.count(":") > 1:
        return parse_ranks(text, "--window") or Ranks(by, 0, 0)
    if first.isascii() and first.isdigit() and last.isascii() and last.isdigit():
        return Ranks(by, int(first), int(last))
    raise InputError(f"window {text!r} is not START:STOP, such as 2000:2050")


def _with_stored_intervals(store: FeatureStore, site: str, by: str, rows: pl.DataFrame) -> pl.DataFrame:
    """A window with the intervals of its ranks, where the stored ranking has them and is of this order."""
    if not store.has_table(site, "rankings"):
        return rows
    stored = store.scan_table(site, "rankings").filter(pl.col("by") == by).collect()
    if "rank_low" not in stored.columns or stored["rank_low"].null_count() == stored.height:
        return rows
    # of another --support a feature has another rank, and the interval is not of that: join by both
    ends = stored.select("rank", "feature", "rank_low", "rank_high")
    joined = rows.join(ends, on=["rank", "feature"], how="left", maintain_order="left")
    interval = pl.format("{}–{}", *(pl.col(end) + 1 for end in ("rank_low", "rank_high")))
    return joined.select("rank", interval.alias("95 %"), *rows.columns[1:])


def _cell(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
