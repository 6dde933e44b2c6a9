"""`latentlake annotate` and `annotations`: stars, names and notes of features, kept in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from jobs.command.options import FeatureNumber, OneSite
from jobs.terminal.console import say
from jobs.terminal.json_lines import read_json_lines
from jobs.terminal.names import one_line
from jobs.terminal.outputs import require_file, write_file
from pipeline.store import FeatureStore
from pipeline.store.records.annotations import (
    Annotations,
    amend,
    export_edits,
    import_edits,
    read_annotations,
)
from schemas.errors import InputError
from schemas.sentences import several

DIGEST = 12
"""Digits of an SAE's digest that are printed."""


def annotate_feature(
    store: FeatureStore,
    site: OneSite,
    feature: FeatureNumber,
    *,
    name: Annotated[
        str | None, typer.Option("--name", help="Its name, a line of at most 200 characters; '' removes it.")
    ] = None,
    note: Annotated[
        str | None, typer.Option("--note", help="A note, of at most 10,000 characters; '' removes it.")
    ] = None,
    star: Annotated[bool | None, typer.Option("--star/--no-star", help="Whether it has a star.")] = None,
    author: Annotated[str | None, typer.Option("--author", help="Who says so. Default: nobody.")] = None,
) -> None:
    """Put what is given, where it is not so already, and print what the feature has.

    InputError where nothing is given, for a text that cannot be kept, and for a feature that is not there.
    """
    given: dict[str, str | bool] = {
        field: value
        for field, value in (("name", name), ("note", note), ("star", star))
        if isinstance(value, str | bool)
    }
    if not given:
        raise InputError("give --name, --note, --star or --no-star")
    state = amend(store, site, feature, author=author, **given)
    say(f"[bold]annotate[/] {escape(site)}: feature {feature} {_line(state) or 'has no star, name or note'}")


def list_annotations(
    store: FeatureStore,
    site: OneSite,
    *,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE.jsonl", help="Write every edit to this file, as JSON lines."),
    ] = None,
    import_from: Annotated[
        Path | None,
        typer.Option(
            "--import", metavar="FILE.jsonl", help="Add the edits of this file; those already there stay."
        ),
    ] = None,
) -> Annotations:
    """Import, then export, else print; what the site has then.

    An exported file holds all edits, so that those of two copies of a store can be brought together.
    InputError where a file cannot be read or written, or a line is not an edit; then nothing is imported.
    """
    require_file(export, "--export")
    if import_from is not None:
        done = import_edits(store, site, read_json_lines(import_from))
        say(f"[bold]annotations[/] {escape(site)}: {done}")
    if export is not None:
        lines = [json.dumps(edit, ensure_ascii=False) for edit in export_edits(store, site)]
        write_file(export, "".join(f"{line}\n" for line in lines).encode(), "--export")
        say(f"{several(len(lines), 'edit')}: [bold]{escape(str(export))}[/]")
    made = read_annotations(store, site)
    if export is None and import_from is None:
        _show(site, made)
    return made


def _show(site: str, made: Annotations) -> None:
    say(f"[bold]annotations[/] {escape(site)}: {several(made.table.height, 'feature')}")
    for row in made.table.iter_rows(named=True):
        say(f"{row['feature']:>9}  {_line(row)}")
    for row in made.others.iter_rows(named=True):
        digest = escape(one_line(row["sae_digest"], DIGEST))
        say(f"{row['feature']:>9}  {_line(row)}  [yellow]of another SAE, {digest}: not shown elsewhere[/]")


def _line(row: Mapping[str, Any]) -> str:
    """A star, the name and the note, as markup; empty where there is none of them."""
    parts = [
        "★" if row["star"] else "",
        f"[bold]{escape(one_line(row['name'] or ''))}[/]" if row["name"] else "",
    ]
    note = f"[dim]{escape(one_line(row['note']))}[/]" if row["note"] else ""
    return " ".join(part for part in (*parts, note) if part)
