"""`latentlake find STORE " war"`: features by a token, by words in their examples, or by conditions.

The questions are those of `pipeline.store.reading.finding`; here they are asked, and the answers printed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from jobs.command.options import AS_JSON, OneSite
from jobs.terminal.console import console, say
from jobs.terminal.names import one_line
from jobs.terminal.progress import counting
from jobs.terminal.strips import shown, strips_of, text_strip
from jobs.views.top import heading, show_strip
from pipeline.store import FeatureStore
from pipeline.store.reading.example_texts import ExampleTexts, text_pattern
from pipeline.store.reading.finding import (
    BY_FEATURE,
    BY_TEXT,
    BY_TOKEN,
    by_columns,
    by_name,
    near_text,
    nearest_tokens,
    on_token,
    require_order,
    require_tokens,
    token_ids,
    with_names,
)
from pipeline.store.reading.windows import AFTER, BEFORE
from schemas.errors import InputError
from schemas.sentences import several


def find(
    store: FeatureStore,
    site: OneSite,
    token: Annotated[
        str | None, typer.Argument(help="A token as it stands in a text, with its space, such as ' war'.")
    ] = None,
    *,
    text: Annotated[
        str | None, typer.Option(help="Words that stand in the windows of a feature's stored examples.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Part of a feature's name, note or explanation.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Condition on columns of the features, such as 'n_active > 50 and token_entropy_bits < 1'; "
            "may be repeated."
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help=f"Order. With TOKEN: {', '.join(BY_TOKEN)}; with --text: {', '.join(BY_TEXT)}; else any "
            f"column (default: {BY_FEATURE})."
        ),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Number of features shown.", min=1)] = 20,
) -> Annotated[pl.DataFrame, AS_JSON]:
    """Print the first `n` features that are found, and return them.

    Conditions may be given alone, or with TOKEN, --text or --name. Raises InputError where no question is
    given, a table is missing, or the vocabulary has no such token.
    """
    if [token, text, name].count(None) < 2:
        raise InputError("give one of a token, --text and --name, not several")
    if token is not None:
        found = _find_token(store, site, token, where or (), by or BY_TOKEN[0], n)
    elif text is not None:
        found = _find_text(store, site, text, where or (), by or BY_TEXT[0], n)
    elif name is not None:
        found = _find_name(store, site, name, where or (), n)
    elif where:
        found = by_columns(store, site, where, by or BY_FEATURE)
        every, fit = several(store.site(site).d_sae, "feature"), f"{found.height:,}"
        say(f"[bold]find[/] {escape(site)}: {fit} of {every} fit{_first(found, n)}")
        found = with_names(store, site, found.head(n))
        _show(found)
    else:
        raise InputError("give a token such as ' war', --text WORDS, --name TEXT or --where CONDITION")
    return found


def _find_token(
    store: FeatureStore, site: str, token: str, where: Sequence[str], by: str, n: int
) -> pl.DataFrame:
    require_tokens(store, site)
    store.scan_table(site, "token_features")  # before the tokenizer is read
    tokens = token_ids(store, token) or _last_of_several(store, site, token)
    found = on_token(store, site, tokens, where, by)
    counts = store.scan_table(site, "token_counts").filter(pl.col("token_id").is_in(tokens)).collect()
    rows, left_out = int(counts["rows"].sum()), int(counts["left_out"].sum())
    text = escape(f"|{shown(store.token_texts(tokens[:1])[0])}|")
    total = store.scan_features(site).select(pl.col("counted_rows").first()).collect().item()
    say(
        f"[bold]find[/] {escape(site)}: {several(found.height, 'feature')} on the token {text}, "
        f"which is {rows:,} of {several(total, 'counted row')}{_first(found, n, by)}"
    )
    if left_out:
        least = several(counts["least"][0], "row")
        say(f"  [dim]{several(left_out, 'feature')} fire on it in fewer than {least}, and are not listed[/]")
    if not rows or not found.height:
        near = nearest_tokens(store, site, token)
        if near:
            say(f"  [dim]other tokens: {escape(', '.join(map(repr, near)))}[/]")
    named = with_names(store, site, found.head(n))
    texts = pl.Series("token", store.token_texts(named["token_id"].to_list()), pl.String)
    named = named.insert_column(1, texts)
    _show(named.drop("token_id", "token") if len(tokens) == 1 else named)
    return named


def _last_of_several(store: FeatureStore, site: str, text: str) -> list[int]:
    """The last token of a text that is not one token; InputError where the text's tokens are not known."""
    from pipeline.tokens.tokenizer import tokenizer_of

    try:
        tokenizer = tokenizer_of(store.lake, store.lake.tokenizer)
        ids = tokenizer.encode_batch([text], store.lake.special_text)[0].tolist()
    except (InputError, ModuleNotFoundError, UnicodeEncodeError):
        ids = []
    if not ids:
        near = nearest_tokens(store, site, text)
        remedy = (
            f"the nearest are {', '.join(map(repr, near))}" if near else "type one as it stands in a text"
        )
        raise InputError(f"no token reads {text!r}; {remedy}")
    pieces = [shown(piece) for piece in store.token_texts(ids)]
    say(escape(f"{text!r} is {len(ids)} tokens, |{'|'.join(pieces)}|: searched is the last one"))
    return [ids[-1]]


def _find_text(
    store: FeatureStore, site: str, text: str, where: Sequence[str], by: str, n: int
) -> pl.DataFrame:
    with counting(f"find {site}", len(store.committed(site)), "shards") as advance:
        require_order(by, BY_TEXT)  # before the texts are read
        pattern = text_pattern(text)
        texts = ExampleTexts(store, site, advance)
    found = near_text(store, site, pattern, where, by, texts)
    say(
        f"[bold]find[/] {escape(site)}: {several(found.height, 'feature')} with {escape(repr(text))} "
        f"in an example{_first(found, n, by)}"
    )
    say(
        f"  [dim]searched: {several(texts.n_examples, 'stored example')} (a feature's strongest rows), "
        f"{BEFORE} tokens before each and {AFTER} after[/]"
    )
    best = with_names(store, site, found.head(n))
    if best.is_empty():
        return best
    described = store.describe_rows(best["row"].to_numpy(), BEFORE, AFTER)
    strips = strips_of(store, described, np.empty(0, np.uint64), np.empty(0, np.float32))
    rows = zip(best.iter_rows(named=True), described.iter_rows(named=True), strips, strict=True)
    for row, place, strip in rows:
        name = f"|{shown(row['top_token'])}|" if row.get("top_token") is not None else ""
        show_strip(
            f"{row['feature']:>9} {escape(name)}  {row['examples']} of {several(row['searched'], 'example')}"
            f"; [dim]{row['activation']:.4g} at {escape(heading(store, place, site))}[/]",
            text_strip(strip, 1.0, shaded=False),
        )
    return best


def _find_name(store: FeatureStore, site: str, text: str, where: Sequence[str], n: int) -> pl.DataFrame:
    found = by_name(store, site, text, where)
    say(
        f"[bold]find[/] {escape(site)}: {several(found.height, 'feature')} with {escape(repr(text))} in "
        f"a name, a note or an explanation{_first(found, n)}"
    )
    named = with_names(store, site, found.head(n))
    shown_texts = pl.Series("text", map(one_line, named["text"]), pl.String)
    _show(named.with_columns(shown_texts))
    return named


def _first(found: pl.DataFrame, n: int, by: str | None = None) -> str:
    order = f" by {by}" if by else ""
    return f"; the first {n:,}{order}" if found.height > n else f",{order}" if by and found.height > 1 else ""


def _show(found: pl.DataFrame) -> None:
    if found.is_empty():
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in found.columns:  # a number that is cut would be another number
        table.add_column(name, justify="left" if found[name].dtype == pl.String else "right", overflow="fold")
    for row in found.iter_rows():
        table.add_row(*map(_cell, row))
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return escape(f"|{shown(value)}|")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
