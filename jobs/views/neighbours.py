"""`latentlake neighbours STORE FEATURE`: neighbours of one feature and their graph, from stored tables."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from jobs.command.options import AS_JSON, FeatureNumber, OneSite
from jobs.tables.pairs.association import MEASURES
from jobs.terminal.console import console, say
from jobs.terminal.names import any_named, labelled, name_cell
from jobs.terminal.outputs import require_file, write_file
from pipeline.store import FeatureStore
from pipeline.store.reading.finding import neighbour_table
from schemas.errors import InputError

COSINE = "cosine"
ORDERS = (*MEASURES, COSINE)
"""What neighbours may be ordered by: measures of co-activation, and the cosine of decoder rows."""

KINDS = ("png", "svg")


def neighbours(
    store: FeatureStore,
    site: OneSite,
    feature: FeatureNumber,
    *,
    by: Annotated[str, typer.Option(help="jaccard, npmi, phi, conditional or cosine.")] = "jaccard",
    k: Annotated[int, typer.Option("-k", help="Number of neighbours, up to those in the table.", min=1)] = 20,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", metavar="FILE", help="Draw the neighbours as a graph: .png or .svg."),
    ] = None,
) -> Annotated[pl.DataFrame, AS_JSON]:
    """Print the first `k` neighbours of a feature by one of ORDERS; draw them to `figure`; return them.

    The rows are those of the table `neighbours`, or of `decoder_neighbours` by cosine. InputError where the
    feature, the order, the table or the kind of figure does not exist.
    """
    store.require_feature(site, feature)
    if by not in ORDERS:
        near = difflib.get_close_matches(by, ORDERS, n=1, cutoff=0.3)
        remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(ORDERS)}"
        raise InputError(f"neighbours cannot be sorted by {by!r}; {remedy}")
    require_file(figure, "--figure")
    if figure is not None and figure.suffix[1:] not in KINDS:
        raise InputError(f"figure {figure} must end in {' or '.join(f'.{kind}' for kind in KINDS)}")
    table = neighbour_table(store, site, by)
    own = table.filter(pl.col("feature") == feature, pl.col("rank") < k).collect()
    if own.is_empty():
        say(f"Feature {feature} of {escape(site)} has no neighbours by {by}: it shares too few rows with any")
        return own
    called = store.names(site, [feature, *own["neighbour"]])
    is_named = any_named(called, own["neighbour"])
    title = escape(f"Neighbours of feature {labelled(called, feature)} of {site} by {by}")
    shown = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    names = [name for name in own.columns if name != "feature"]
    for name in names:  # a number that is cut would be another number
        shown.add_column(name, justify="right", overflow="fold")
    if is_named:
        shown.add_column("name")
    for row in own.iter_rows(named=True):
        cells = [name_cell(called, row["neighbour"])] if is_named else []
        shown.add_row(*(_cell(row[name]) for name in names), *cells)
    console.print(shown)
    if figure is not None:
        _draw(store, site, feature, by, table, own, figure)
    return own


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _draw(
    store: FeatureStore, site: str, feature: int, by: str, table: pl.LazyFrame, own: pl.DataFrame, path: Path
) -> None:
    from jobs.figures.neighbours import draw_neighbours
    from jobs.figures.plots import drawing, render

    around = own["neighbour"].implode()
    links = table.filter(pl.col("feature").is_in(around), pl.col("neighbour").is_in(around)).collect()
    name = "decoder_neighbours" if by == COSINE else "neighbours"
    with drawing(store, site):
        drawn = draw_neighbours(own, links, site, feature, by)
        write_file(path, render(drawn, path.suffix[1:], store.made_from(site, name)), "--figure")
    say(f"[bold]{escape(str(path))}[/]")
