"""`latentlake rank STORE`: features ordered by columns of the feature table, and windows of such an order."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import polars as pl
from rich.box import SIMPLE_HEAD
from rich.table import Table

from jobs.console import console, say
from pipeline.store import FeatureStore
from pipeline.store.parquet import read_metadata
from pipeline.store.tables import RECEIPTS_KEY, write_table
from schemas.errors import InputError
from schemas.layout import StorePath
from schemas.run_file import Rank
from schemas.tables import Schema

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
"""Statistics that stand beside each feature of a window."""

PRINTED = ("n_active", "frequency", "mean_all", "mean_active", "max_activation")
"""Those of them that are printed: what fits 80 columns."""

RANKINGS: Schema = {"by": pl.String(), "rank": pl.UInt32(), "feature": pl.UInt32(), "value": pl.Float64()}
RANKING_SUMMARY: Schema = {"by": pl.String(), "ranked": pl.UInt32(), "without_value": pl.UInt32()}


def rank(store: FeatureStore, site: str, by: Sequence[str] = DEFAULT_BY) -> list[StorePath]:
    """Write the tables `rankings` and `ranking_summary` of a site, from its feature table.

    `rankings`: by, rank (u32 from 0, the largest value first, equal values by feature), feature, value
    (f64). Values go by their sign: features with a negative mean come last by sigma_over_mu. A feature whose
    value is null, such as sigma_over_mu of one that never fires or whose mean is 0, has no rank;
    `ranking_summary` says for each `by` how many are `ranked` and how many `without_value`. Both tables
    are as fresh as the feature table. Raises InputError where that is missing, or a column not in it or no
    number.
    """
    features = store.scan_features(site).collect()
    names = list(dict.fromkeys(by))
    rankings = [ranking(features, name) for name in names]
    counts = [each.height for each in rankings]
    summary = pl.DataFrame(
        {"by": names, "ranked": counts, "without_value": [features.height - n for n in counts]},
        schema=RANKING_SUMMARY,
    )
    told = ", ".join(f"{name} ({n:,} features)" for name, n in zip(names, counts, strict=True))
    say(f"[bold]rank[/] {site}: by {told}")
    made_from = read_metadata(store.layout.table(site, "features"))[RECEIPTS_KEY]
    tables = {"rankings": pl.concat([pl.DataFrame(schema=RANKINGS), *rankings]), "ranking_summary": summary}
    return [write_table(store.layout, site, name, table, made_from) for name, table in tables.items()]


def ranking(features: pl.DataFrame, by: str, *, descending: bool = True) -> pl.DataFrame:
    """Features that have a value of `by`, in order (schema RANKINGS); equal values by feature."""
    value = pl.col(_number(features, by)).cast(pl.Float64).fill_nan(None)
    return (
        features.select("feature", value=value)
        .drop_nulls("value")
        .sort("value", "feature", descending=[descending, False])
        .with_row_index("rank")
        .select(pl.lit(by).alias("by"), pl.col("rank").cast(pl.UInt32), "feature", "value")
    )


def window(
    store: FeatureStore, site: str, by: str, start: int, stop: int, descending: bool = True
) -> pl.DataFrame:
    """Ranks `start` up to but not including `stop` of the features by any numeric column, rank 0 first.

    Columns: rank, feature, the column itself, then those of SHOWN that are not it. A window that reaches past
    the last rank is cut there; one that starts past it, or is empty, is an InputError.
    """
    features = store.scan_features(site).collect()
    order = ranking(features, by, descending=descending)
    if not 0 <= start < stop:
        raise InputError(f"ranks {start} to {stop} are no window: give START:STOP with 0 <= START < STOP")
    if start >= order.height:
        raise InputError(
            f"ranks {start} to {stop} by {by}: {order.height} of {features.height} features have a value; "
            "start below that"
        )
    beside = features.select(*dict.fromkeys(["feature", by, *SHOWN]))
    return (
        order.slice(start, stop - start)
        .select("rank", "feature")
        .join(beside, on="feature", how="left", maintain_order="left")
    )


def show_window(store: FeatureStore, site: str, by: str, text: str, *, descending: bool = True) -> None:
    """Print the window that `text`, START:STOP, names."""
    first, _, last = text.partition(":")
    if not (first.isascii() and first.isdigit() and last.isascii() and last.isdigit()):
        raise InputError(f"window {text!r} is no START:STOP, such as 2000:2050")
    found = window(store, site, by, int(first), int(last), descending)
    found = found.select(*dict.fromkeys(["rank", "feature", by, *PRINTED]))
    order = "largest" if descending else "smallest"
    table = Table(title=f"{site} by {by}, {order} first", box=SIMPLE_HEAD, pad_edge=False)
    for column in found.columns:
        table.add_column(column.replace("_", "_\n"), justify="right")  # names wrap where they may
    for row in found.iter_rows():
        table.add_row(*(_cell(value) for value in row))
    console.print(table)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _number(features: pl.DataFrame, by: str) -> str:
    """The column's name, when it is a column of numbers."""
    numbers = [name for name, dtype in features.schema.items() if dtype.is_numeric()]
    if by in numbers:
        return by
    near = difflib.get_close_matches(by, numbers, n=1, cutoff=0.3)
    remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(numbers)}"
    what = "holds no numbers" if by in features.columns else "is no column of the feature table"
    raise InputError(f"can not rank by {by!r}, which {what}; {remedy}")


if __name__ == "__main__":
    import sys

    from jobs.cli import main

    main(["rank", *sys.argv[1:]])
