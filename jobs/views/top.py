"""`latentlake top STORE FEATURE`: the strongest contexts of a feature, the firing token marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from rich.markup import escape
from rich.text import Text

from jobs.command.options import AS_JSON, After, Before, FeatureNumber, Html, Maximum, OneSite
from jobs.terminal.console import console, say
from jobs.terminal.names import WIDE, labelled
from jobs.terminal.outputs import require_file, write_file
from jobs.terminal.strips import (
    AFTER,
    BEFORE,
    html_page,
    strip_of,
    strips_of,
    strongest_in,
    text_strip,
)
from pipeline.store import FeatureStore
from pipeline.store.reading.contexts import label_column
from pipeline.store.reading.label_filters import WHERE_HELP, label_filter, require_values
from pipeline.store.reading.site_access import require_committed


def top(
    store: FeatureStore,
    site: OneSite,
    feature: FeatureNumber,
    *,
    k: Annotated[int, typer.Option("-k", help="How many rows.", min=1)] = 20,
    where: Annotated[
        list[str] | None, typer.Option(help=f"Keep rows with these labels, {WHERE_HELP}")
    ] = None,
    before: Before = BEFORE,
    after: After = AFTER,
    one_per_document: Annotated[
        bool, typer.Option("--one-per-document", help="Show only the strongest token of each document.")
    ] = False,
    shaded: Annotated[bool, typer.Option("--strip", help="Shade every token by its activation.")] = False,
    maximum: Maximum = None,
    html: Html = None,
) -> Annotated[pl.DataFrame, AS_JSON]:
    """Print the `k` strongest rows of a feature, each with tokens before and after; return them.

    `where`: conditions on labels (`label_filters`), all of which must hold.

    `shaded`: every token by its activation, the deepest shade from `maximum` on (default: the feature's
    strongest activation). With `html` the same, shaded, goes into that file.
    """
    require_file(html, "--html")
    require_committed(store, site)
    filters = [label_filter(store, text, label_column) for text in where or ()]
    condition = pl.all_horizontal(filters) if filters else None
    contexts = store.contexts(site, feature, k, condition, before, after, one_per_document=one_per_document)
    if contexts.is_empty():
        require_values(store, where or ())
        say(f"feature {feature} of {site} never fires" + (" there" if where else ""))
        return contexts.with_columns(pl.Series("tokens", [], pl.List(pl.String)))
    if shaded or html is not None:
        rows, values = store.rows_of(site, feature)
    else:  # only the firing tokens stand out, and their activations are known
        by_row = contexts.sort("row")
        rows, values = by_row["row"].to_numpy(), by_row["activation"].to_numpy()
    averaged = store.site(site).selection.is_averaged
    strips = strips_of(store, contexts, rows, values, averaged=averaged)
    maximum = strongest_in([values]) if maximum is None else maximum
    heads = [heading(store, row, site) for row in contexts.iter_rows(named=True)]
    each = ", one per document" if one_per_document else ""
    each += ", each the mean of a context" if averaged else ""
    title = f"feature {labelled(store.names(site, [feature]), feature, WIDE)} of {site}"
    say(
        f"[bold]{escape(title)}[/]: its {contexts.height} strongest rows{each}{_compaction_note(store, site)}"
    )
    for activation, head, strip in zip(contexts["activation"], heads, strips, strict=True):
        show_strip(f"{activation:>8.2f}  [dim]{escape(head)}[/]", text_strip(strip, maximum, shaded=shaded))
    if html is not None:
        above = [f"{value:.4g} · {head}" for value, head in zip(contexts["activation"], heads, strict=True)]
        note = f"Its {contexts.height} strongest rows{each}; full shade: {maximum:.4g}. {store.layout.root}"
        page = html_page(title, note, zip(above, strips, [maximum] * len(strips), strict=True))
        write_file(html, page.encode(), "--html")
        say(f"HTML: [bold]{escape(str(html))}[/]")
    return with_token_texts(store, contexts)


def with_token_texts(store: FeatureStore, described: pl.DataFrame) -> pl.DataFrame:
    """Described rows with `tokens`, the text of each of the window's tokens: list[str]."""
    texts = [store.pieces(ids) for ids in described["token_ids"].to_list()]
    return described.with_columns(pl.Series("tokens", texts, pl.List(pl.String)))


def heading(store: FeatureStore, row: dict[str, Any], site: str) -> str:
    """Where a described row of a site is: its labels, context and position."""
    names = map(label_column, store.lake.label_columns)
    labels = [str(row[name]) for name in names if row.get(name) is not None]
    place = f"context {row['context']}"
    place += "" if store.site(site).selection.is_averaged else f", position {row['position']}"
    return f"{', '.join(labels)} · {place}" if labels else place


def show_strip(head: str, strip: Text) -> None:
    """Print a line of markup, and the strip below it."""
    say(head)
    console.print(Text(" " * 10) + strip, soft_wrap=True, highlight=False)


def _compaction_note(store: FeatureStore, site: str) -> str:
    """What to say where a compaction does not cover all shards."""
    if store.compacted(site) is None or not (rest := len(store.uncompacted(site))):
        return ""
    return (
        f" [dim]({rest:,} shards were added after the compaction: `latentlake compact` makes this faster)[/]"
    )


def marked(store: FeatureStore, token_ids: Sequence[int], position: int) -> Text:
    """The tokens of a context around `position`, the firing one between bars."""
    first = max(0, position - BEFORE)
    window = token_ids[first : position + AFTER + 1]
    strip = strip_of(store, window, np.zeros(len(window), np.float32), position - first)
    return text_strip(strip, 1.0, shaded=False)
