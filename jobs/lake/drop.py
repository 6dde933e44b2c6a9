"""`latentlake drop STORE`: remove a pass, a site or a derived table, after showing what that is."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Annotated

import typer
from rich.markup import escape

from jobs.terminal.console import say
from jobs.terminal.progress import size
from pipeline.monitor.run_state import run_at_work
from pipeline.store import FeatureStore
from pipeline.store.objects.paths import store_path
from pipeline.store.records.catalog import no_lake, read_plans
from pipeline.store.records.commits import has_commits
from pipeline.store.records.dropped import dropped_sites, live_sites
from pipeline.store.records.tokens import read_lake
from pipeline.store.upkeep.drop import (
    Piece,
    derived_pieces,
    drop_pass,
    drop_site,
    leftovers,
    pieces_of_pass,
    pieces_of_site,
    stored_sites,
    table_piece,
)
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.sentences import several


def drop(
    root: str,
    *,
    pass_name: Annotated[
        str | None, typer.Option("--pass", help="A pass, with its sites, their tables and figures.")
    ] = None,
    site: Annotated[
        str | None, typer.Option("--site", help="A site; with --table, the site whose table is removed.")
    ] = None,
    table: Annotated[
        str | None, typer.Option("--table", help="A derived table, of one site or of all.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Say what goes and how large it is, ask unless `yes`, and remove it.

    InputError while a run is at work on the pass, and without `yes` where there is no terminal to ask on.
    """
    layout = Layout(store_path(root))
    if read_lake(layout) is None:
        raise no_lake(layout)
    catalog = _Catalog(layout, pass_name)
    if pass_name is not None and site is None and table is None:
        _drop_pass(catalog, pass_name, yes=yes)
    elif table is not None and pass_name is None:
        _drop_table(catalog, table, site, yes=yes)
    elif site is not None and pass_name is None:
        _drop_site(catalog, site, yes=yes)
    else:
        raise InputError("give one of --pass, --site and --table (which --site may narrow)")


class _Catalog:
    """The sites of a store by pass, of records alone: a store that does not open can be repaired so."""

    def __init__(self, layout: Layout, removed: str | None = None) -> None:
        """`removed`: the pass that goes, whose plan may be damaged."""
        self.layout, is_damaged = layout, False
        try:
            self.plans = read_plans(layout)
        except InputError:
            self.plans, is_damaged = read_plans(layout, without=removed), True
        self.dropped = {name: dropped_sites(layout, name) for name in self.plans}
        self.by_pass = {
            name: [site.name for site in live_sites(plan, self.dropped[name])]
            for name, plan in self.plans.items()
        }
        if is_damaged and removed is not None:
            self.by_pass[removed] = stored_sites(layout, removed)

    def passes(self, site: str) -> list[str]:
        """Those that have a site of this name."""
        return [name for name, sites in self.by_pass.items() if site in sites]

    @property
    def names(self) -> list[str]:
        """Of all sites."""
        return [site for sites in self.by_pass.values() for site in sites]


def _drop_pass(catalog: _Catalog, name: str, *, yes: bool) -> None:
    if name not in catalog.by_pass:
        raise InputError(f"the store has no pass {name!r}; it has {', '.join(catalog.by_pass) or 'none'}")
    # Tables and figures lie below the site's name: they stay where another pass has a site of it.
    only_here = [site for site in catalog.by_pass[name] if catalog.passes(site) == [name]]
    pieces = pieces_of_pass(catalog.layout, name, only_here)
    about = (
        f"pass {name} with {several(len(catalog.by_pass[name]), 'site')} ({', '.join(catalog.by_pass[name])})"
    )
    _remove(catalog, [name], about, pieces, lambda: drop_pass(catalog.layout, name, pieces), yes=yes)


def _drop_site(catalog: _Catalog, site: str, *, yes: bool) -> None:
    passes = catalog.passes(site)
    if not passes:  # gone already, but for what an interrupted drop left: that needs no confirmation
        pieces = [piece for _, piece in leftovers(catalog.layout, site.__eq__)]
        if not pieces:
            was = any(site in dropped for dropped in catalog.dropped.values())
            why = (
                "was dropped before"
                if was
                else f"does not exist; the store has {', '.join(catalog.names) or 'none'}"
            )
            raise InputError(f"site {site!r} of {catalog.layout.root} {why}")
        _remove_all(pieces)
        _forget(catalog.layout)
        say(
            f"[bold]drop[/] {several(len(pieces), 'piece')} that remained from an interrupted drop of site "
            f"{site}"
        )
        return
    if len(passes) > 1:
        raise InputError(f"passes {', '.join(passes)} have a site {site!r}: drop one of them with --pass")
    (name,) = passes
    if catalog.by_pass[name] == [site]:
        say(f"{site} is the only site of pass {name}, which is therefore dropped too")
        _drop_pass(catalog, name, yes=yes)
        return
    if not has_commits(catalog.layout, name):
        raise InputError(
            f"pass {name!r} has no committed shard yet, so its sites are not fixed: drop it with --pass, or "
            "run it without the site"
        )
    pieces = pieces_of_site(catalog.layout, name, site) + derived_pieces(catalog.layout, site)
    about = f"site {site} of pass {name}"
    _remove(catalog, passes, about, pieces, lambda: drop_site(catalog.layout, name, site, pieces), yes=yes)


def _drop_table(catalog: _Catalog, table: str, site: str | None, *, yes: bool) -> None:
    if site is not None and not catalog.passes(site):
        raise InputError(f"the store has no site {site!r}; it has {', '.join(catalog.names) or 'none'}")
    sites = catalog.names if site is None else [site]
    # a site of several passes has its tables once: its name counts once
    candidates = [(name, table_piece(catalog.layout, name, table)) for name in dict.fromkeys(sites)]
    pieces = [piece for _, piece in candidates if piece is not None]
    if not pieces:
        raise InputError(f"no site of {', '.join(sites) or 'the store'} has a table {table!r}")
    about = f"table {table} of {', '.join(name for name, piece in candidates if piece is not None)}"
    passes = [name for name in catalog.plans if set(catalog.by_pass[name]) & set(sites)]
    _remove(catalog, passes, about, pieces, lambda: _remove_all(pieces), yes=yes)


def _remove_all(pieces: Iterable[Piece]) -> None:
    for piece in pieces:
        piece.remove()


def _remove(
    catalog: _Catalog,
    passes: Iterable[str],
    about: str,
    pieces: list[Piece],
    remove: Callable[[], object],
    *,
    yes: bool,
) -> None:
    """Check that no run is at work, print what goes, ask, and do it."""
    _require_quiet(catalog.layout, passes)
    kinds: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces:
        kinds[piece.what].append(piece)
    for what, group in kinds.items():
        more = f" and {len(group) - 1:,} more" if len(group) > 1 else ""
        say(f"  {what}: {_weight(group)}, {escape(str(group[0].path))}{more}")
    weight = _weight(pieces)
    if not yes:
        if not sys.stdin.isatty():
            raise InputError(
                f"drop would remove {about} ({weight}): use --yes, because nobody can be asked here"
            )
        if not typer.confirm(f"Remove {about} ({weight}) for good?"):
            say("nothing was removed")
            return
        # The answer may have taken long enough for a run to begin.
        _require_quiet(catalog.layout, passes)
    remove()
    _forget(catalog.layout)
    say(f"[bold]drop[/] {escape(about)}: {weight}")


def _require_quiet(layout: Layout, passes: Iterable[str]) -> None:
    for name in passes:
        if running := run_at_work(layout, name):
            raise InputError(f"pass {name!r}: {running}: stop it, or wait until it ends, and drop again")


def _weight(pieces: list[Piece]) -> str:
    files, total = sum(piece.files for piece in pieces), sum(piece.bytes for piece in pieces)
    return f"{several(files, 'file')}, {size(total)}"


def _forget(layout: Layout) -> None:
    """The report names what is there; where store or report cannot be read, that is reported."""
    from jobs.report.build import forget_dropped

    try:
        forget_dropped(FeatureStore.open(layout.root))
    except InputError as error:
        say(f"[yellow]note[/]: the report's first page is left unchanged: {escape(str(error))}")
