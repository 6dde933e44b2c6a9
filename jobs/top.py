"""`latentlake top STORE FEATURE`: the strongest contexts of a feature, the firing token marked."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from rich.markup import escape

from jobs.console import say
from pipeline.store import FeatureStore
from schemas.errors import InputError

BEFORE, AFTER = 24, 8
MARKS = str.maketrans({"\n": "↩", "\t": "→", "\r": "↩"})


def top(store: FeatureStore, site: str, feature: int, *, k: int = 20, where: Sequence[str] = ()) -> None:
    """Print the `k` strongest rows of a feature, each in its context; `where` holds COLUMN=VALUE pairs."""
    filters = [label_filter(store, text) for text in where]
    condition = pl.all_horizontal(filters) if filters else None
    found = store.contexts(site, feature, k, where=condition)
    if found.is_empty():
        say(f"feature {feature} of {site} never fires" + (" there" if where else ""))
        return
    say(f"[bold]feature {feature} of {site}[/]: its {found.height} strongest rows{_behind(store, site)}")
    for row in found.iter_rows(named=True):
        labels = ", ".join(str(row[name]) for name in store.lake.label_columns)
        where_it_is = f"context {row['context']}, position {row['position']}"
        say(f"{row['activation']:>8.2f}  [dim]{escape(labels)}{' · ' if labels else ''}{where_it_is}[/]")
        say(f"          {marked(store, row['token_ids'], row['position'])}")


def _behind(store: FeatureStore, site: str) -> str:
    """What to say where a compaction does not cover all shards."""
    if store.compacted(site) is None or not (rest := len(store.uncompacted(site))):
        return ""
    return f" [dim]({rest:,} shards came after the compaction: `latentlake compact` makes this quicker)[/]"


def marked(store: FeatureStore, token_ids: Sequence[int], position: int) -> str:
    """The tokens around `position` as rich markup, the firing one reversed between bars."""
    first = max(0, position - BEFORE)
    before = "".join(store.pieces(token_ids[first:position]))
    after = "".join(store.pieces(token_ids[position + 1 : position + 1 + AFTER]))
    firing = store.pieces(token_ids[position : position + 1])[0]
    return f"{_plain(before)}[bold reverse]|{_plain(firing)}|[/]{_plain(after)}"


def _plain(text: str) -> str:
    return escape(text.translate(MARKS))


def label_filter(store: FeatureStore, text: str) -> pl.Expr:
    """A condition on a label column from COLUMN=VALUE."""
    column, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"--where {text!r} is no COLUMN=VALUE, such as party=Republican")
    known = store.lake.label_columns
    if column not in known:
        raise InputError(
            f"--where {text!r}: the store has no label {column!r}; it has {', '.join(known) or 'none'}"
        )
    if known[column] == "String":
        return pl.col(column) == value
    try:
        return pl.col(column).cast(pl.Float64) == float({"true": "1", "false": "0"}.get(value.lower(), value))
    except ValueError:
        raise InputError(
            f"--where {text!r}: label {column} is {known[column]}, {value!r} is no number"
        ) from None


if __name__ == "__main__":
    import sys

    from jobs.cli import main

    main(["top", *sys.argv[1:]])
