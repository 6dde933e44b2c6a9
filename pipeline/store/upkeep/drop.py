"""What goes when a pass, or a site of one, is dropped, and in which order.

A site goes by a marker, which readers honour at once, and then by its leftovers. A pass goes by its
receipts first and its plan last, so that in between it is one that was never finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pipeline.store.objects.verbs import listed, put_if_absent, read_bytes, remove, remove_tree, walk
from pipeline.store.records.catalog import read_plans
from pipeline.store.records.commits import has_commits
from pipeline.store.records.dropped import dropped_sites, live_sites
from pipeline.store.records.site import remove_site_weights
from schemas.errors import InputError
from schemas.layout import Layout, StorePath
from schemas.names import NAME
from schemas.records import Compaction, Dropped

_NO_ROOM = "cannot be removed: allow writing there, and run again"


@dataclass
class Piece:
    """A folder or file that goes, and how much it weighs."""

    path: StorePath
    what: str
    files: int = 0
    bytes: int = 0
    newest: float = 0.0
    marker: StorePath | None = None
    """Of a compaction: what publishes it, which goes first."""

    @property
    def groups(self) -> list[StorePath]:
        """Weights of sites that it holds, or is: they are there as long as their root is."""
        if self.what != "weights" or not self.path.is_dir():
            return []
        there = [self.path] if self.path.suffix == ".zarr" else listed(self.path)
        return [path for path in there if path.suffix == ".zarr"]

    def count(self, size: int, modified: float) -> None:
        """One of its files."""
        self.files, self.bytes = self.files + 1, self.bytes + size
        self.newest = max(self.newest, modified)

    def remove(self) -> None:
        """Remove it; InputError where that cannot be."""
        if self.marker is not None:
            remove(self.marker)
        for group in self.groups:
            remove_site_weights(group)
        remove_whole(self.path)


def remove_whole(path: StorePath) -> None:
    """Remove a file or folder; InputError where it is still there."""
    if path.is_file():
        remove(path)
    else:
        remove_tree(path)
    if path.exists():
        raise InputError(f"{path} {_NO_ROOM}")


def pieces_of_site(layout: Layout, pass_name: str, site: str) -> list[Piece]:
    """What a site of a pass has in the store, data first; of its tables and the like see `derived_pieces`."""
    pieces: dict[str, Piece] = {}
    root = layout.pass_folder(pass_name)
    # its compactions by their markers, or by their folders where there is no marker
    compactions = set[str]()
    for path in listed(layout.compactions(pass_name)):
        if path.suffix != ".json":
            is_own = (path / site).is_dir()
        else:
            is_own = path.name[0] != "." and Compaction.from_json(read_bytes(path), str(path)).site == site
        if is_own:
            compactions.add(path.name.removesuffix(".json"))
    for name, size, modified in walk(root):
        if (place := _place(name, site, compactions)) is not None:
            key, what = place
            piece = pieces.setdefault(key, Piece(root / key, what))
            piece.count(size, modified)
            if what == "compactions":
                piece.marker = layout.compaction_marker(pass_name, piece.path.name)
    order = ("compactions", "data", "weights")
    return sorted(pieces.values(), key=lambda piece: (order.index(piece.what), str(piece.path)))


def _place(name: str, site: str, compactions: set[str]) -> tuple[str, str] | None:
    """The piece that a file of a pass belongs to, by its path from there, and what that is."""
    parts = name.split("/")
    if not all(map(NAME.fullmatch, parts[:4])):
        return None
    if len(parts) > 4 and parts[0] == "data" and parts[3] == site:
        return "/".join(parts[:4]), "data"
    if parts[0] == "compactions" and len(parts) > 1 and parts[1].removesuffix(".json") in compactions:
        return f"compactions/{parts[1].removesuffix('.json')}", "compactions"
    if parts[:2] == ["sites", f"{site}.zarr"]:
        return "/".join(parts[:2]), "weights"
    return None


def derived_pieces(layout: Layout, site: str) -> list[Piece]:
    """Tables, figures, annotations and pages of the report of a site."""
    folders = {
        "tables": layout.tables(site),
        "annotations": layout.annotations(site),
        "figures": layout.figures(site),
        "report": layout.report_site(site),
    }
    return [_whole(path, what) for what, path in folders.items() if path.is_dir()]


def table_piece(layout: Layout, site: str, table: str) -> Piece | None:
    """One derived table, if it is there."""
    path = layout.table(site, table)
    if not path.is_file():
        return None
    piece = Piece(path, "tables")
    for name, size, modified in walk(path.parent):  # a walk is what knows size and age on object storage too
        if name == path.name:
            piece.count(size, modified)
    return piece


def stored_sites(layout: Layout, pass_name: str) -> list[str]:
    """The sites whose weights a pass holds: all there is to go by where its plan is damaged."""
    names = (path.name.removesuffix(".zarr") for path in listed(layout.sites(pass_name)))
    return sorted(name for name in names if NAME.fullmatch(name))


def pieces_of_pass(layout: Layout, pass_name: str, sites: Iterable[str]) -> list[Piece]:
    """What a pass has in the store, in the order in which it goes; `sites`: those whose tables go with it."""
    folders = {
        "receipts": layout.commits(pass_name),
        "data": layout.data(pass_name),
        "compactions": layout.compactions(pass_name),
        "weights": layout.sites(pass_name),
    }
    pieces = [_whole(path, what) for what, path in folders.items() if path.is_dir()]
    for site in sites:
        pieces += derived_pieces(layout, site)
    return pieces


def _whole(path: StorePath, what: str) -> Piece:
    piece = Piece(path, what)
    for _, size, modified in walk(path):
        piece.count(size, modified)
    return piece


def drop_pass(layout: Layout, pass_name: str, pieces: Iterable[Piece]) -> None:
    """Remove the pieces in their order, and last the plan with what else lies in the pass's folder."""
    for piece in pieces:
        piece.remove()
    # the plan after all data: until then a pass without receipts is one that can be dropped again
    remove_tree(layout.dropped(pass_name))
    remove(layout.plan(pass_name))
    remove_tree(layout.pass_folder(pass_name))
    if layout.plan(pass_name).exists():
        raise InputError(f"{layout.pass_folder(pass_name)} {_NO_ROOM}")


def drop_site(layout: Layout, pass_name: str, site: str, pieces: Iterable[Piece]) -> None:
    """Put the marker, then remove the pieces."""
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    # the marker first: from here on nobody reads the site, however far the removal comes
    put_if_absent(layout.dropped_marker(pass_name, site), Dropped(site=site, at=at).to_json())
    for piece in pieces:
        piece.remove()


def leftovers(
    layout: Layout, is_wanted: Callable[[str], bool] = lambda site: True
) -> Iterator[tuple[str, Piece]]:
    """Sites that were dropped, each with a piece that an interrupted drop has left of it.

    Tables and figures go by the site's name alone: those of a name that another pass has by now are not left.
    """
    plans = {name: plan for name, plan in read_plans(layout).items() if has_commits(layout, name)}
    dropped = {name: dropped_sites(layout, name) for name in plans}
    live = {site.name for name, plan in plans.items() for site in live_sites(plan, dropped[name])}
    for name, sites in dropped.items():
        for site in filter(is_wanted, sorted(sites)):
            pieces = pieces_of_site(layout, name, site)
            for piece in pieces + ([] if site in live else derived_pieces(layout, site)):
                yield site, piece
