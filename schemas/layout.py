"""Where everything lies below a store's root. Nothing else in latentlake joins paths of the store."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol, Self

from schemas.names import check_name

CSR, POSTINGS, PARTIALS, ROW_COUNTS = "csr.zarr", "postings.parquet", "partials.parquet", "row_counts.parquet"
CONTROL, CONTROL_L0 = "control.parquet", "control_l0.parquet"
DENSE = "x.zarr"
ZARR_METADATA = "zarr.json"
_CHUNK_KEY = r"c(?:/(?:0|[1-9][0-9]*))*"
_ZARR_NAME = re.compile(rf"(?:[A-Za-z0-9]\w*/)?(?:{re.escape(ZARR_METADATA)}|{_CHUNK_KEY})", re.ASCII)
_NAMED_IN = {
    CSR: re.compile(rf"{re.escape(ZARR_METADATA)}|(?:data|indices|indptr)/(?:zarr\.json|{_CHUNK_KEY})"),
    DENSE: re.compile(rf"{re.escape(ZARR_METADATA)}|{_CHUNK_KEY}"),
}


class StorePath(Protocol):
    """What a path of a store offers, wherever it lies; written by `pipeline.store.objects.verbs`
    alone.

    A `pathlib.Path` is one; one on object storage is a `pipeline.store.objects.paths.ObjectPath`.
    """

    @property
    def name(self) -> str:
        """The last part."""

    @property
    def stem(self) -> str:
        """The last part without its suffix."""

    @property
    def suffix(self) -> str:
        """What the last dot of the name begins, with it."""

    @property
    def parent(self) -> Self:
        """All but the last part."""

    def __truediv__(self, name: str, /) -> Self: ...

    def __hash__(self) -> int: ...

    def absolute(self) -> Self:
        """The same place, wherever one stands."""

    def exists(self) -> bool:
        """Whether something is there, or below."""

    def is_file(self) -> bool:
        """Whether a file or object is there."""

    def is_dir(self) -> bool:
        """Whether a folder is there."""

    def iterdir(self) -> Iterator[Self]:
        """What lies just below."""

    def read_bytes(self) -> bytes:
        """The whole file or object; FileNotFoundError where there is none."""

    def open(self, mode: Literal["rb"], /) -> BinaryIO:
        """The file or object opened for reading at any place; close it when done."""

    def unlink(self, *, missing_ok: Literal[True]) -> None:
        """Remove the file or object, if it is there."""

    def mkdir(self, *, parents: Literal[True], exist_ok: Literal[True]) -> None:
        """Make the folder, where there are such things."""


def is_stray(name: str) -> bool:
    """Whether a name is a file manager's or a file system's, so that a folder of these counts as empty."""
    return name.startswith(".") or name in ("Thumbs.db", "desktop.ini", "lost+found", "@eaDir")


def is_zarr_name(name: str, of: str = "") -> bool:
    """Whether Zarr 3 has a file of this name in a group, or in the data object `of`: csr.zarr or x.zarr.

    What else lies there (.DS_Store, ._0, Thumbs.db, .nfs…, desktop.ini) is of file managers and file systems.
    """
    return _NAMED_IN.get(of, _ZARR_NAME).fullmatch(name) is not None


def below(folder: StorePath, path: str, what: str) -> StorePath:
    """The path that a record names below a folder; InputError when it could lead out of it."""
    for part in path.split("/"):
        folder = folder / check_name(part, what)
    return folder


@dataclass(frozen=True)
class Layout:
    """Paths of the store at `root`."""

    root: StorePath

    @property
    def lake(self) -> StorePath:
        """The lake's record."""
        return self.root / "lake.json"

    @property
    def vocabulary(self) -> StorePath:
        """Text of every token."""
        return self.root / "vocabulary.parquet"

    @property
    def corpus(self) -> StorePath:
        """Folder of the corpus chain."""
        return self.root / "corpus"

    def corpus_link(self, number: int) -> StorePath:
        """One link of the corpus chain."""
        return self.corpus / f"{number}.json"

    def tokens(self, shard: str) -> StorePath:
        """Token shard."""
        return self.token_shards / f"{check_name(shard, 'shard')}.parquet"

    @property
    def token_shards(self) -> StorePath:
        """Folder of all token shards."""
        return self.root / "tokens"

    @property
    def tokenize_lock(self) -> StorePath:
        """Locked while token shards are written: an empty file; an object that says by whom."""
        return self.root / "tokens" / ".lock"

    @property
    def passes(self) -> StorePath:
        """Folder of the passes."""
        return self.root / "passes"

    def pass_folder(self, pass_name: str) -> StorePath:
        """Folder of one pass."""
        return self.passes / check_name(pass_name, "pass")

    def plan(self, pass_name: str) -> StorePath:
        """The pass's plan."""
        return self.pass_folder(pass_name) / "plan.json"

    def commits(self, pass_name: str) -> StorePath:
        """Folder of the commit markers."""
        return self.pass_folder(pass_name) / "commits"

    def commit(self, pass_name: str, shard: str) -> StorePath:
        """Commit marker of one shard."""
        return self.commits(pass_name) / f"{check_name(shard, 'shard')}.json"

    def attempt(self, pass_name: str, shard: str, attempt: str) -> StorePath:
        """Folder of one attempt at a shard."""
        return self.data(pass_name) / check_name(shard, "shard") / check_name(attempt, "attempt")

    def compactions(self, pass_name: str) -> StorePath:
        """Folder of the compactions of a pass, and of their markers."""
        return self.pass_folder(pass_name) / "compactions"

    def compaction_marker(self, pass_name: str, compaction: str) -> StorePath:
        """What publishes one compaction, put when its files are there."""
        return self.compactions(pass_name) / f"{check_name(compaction, 'compaction')}.json"

    def compaction(self, pass_name: str, compaction: str) -> StorePath:
        """Folder of one compaction's files."""
        return self.compactions(pass_name) / check_name(compaction, "compaction")

    def manifest(self, pass_name: str) -> StorePath:
        """Compacted view of the commits."""
        return self.pass_folder(pass_name) / "manifest.parquet"

    def events(self, pass_name: str) -> StorePath:
        """Log of what happened to the pass, one JSON object a line."""
        return self.pass_folder(pass_name) / "events.jsonl"

    def event_parts(self, pass_name: str) -> StorePath:
        """Folder of the same log in parts, where files cannot be appended to."""
        return self.pass_folder(pass_name) / "events"

    def prediction(self, pass_name: str) -> StorePath:
        """What the pass was predicted to take; no data."""
        return self.pass_folder(pass_name) / "prediction.json"

    def sites(self, pass_name: str) -> StorePath:
        """Folder of the weights of a pass's sites."""
        return self.pass_folder(pass_name) / "sites"

    def site(self, pass_name: str, site: str) -> StorePath:
        """Weights and metadata of a site, for jobs without torch."""
        return self.sites(pass_name) / f"{check_name(site, 'site')}.zarr"

    def dropped(self, pass_name: str) -> StorePath:
        """Folder of the markers of dropped sites."""
        return self.pass_folder(pass_name) / "dropped"

    def dropped_marker(self, pass_name: str, site: str) -> StorePath:
        """The marker that a site of the pass was dropped."""
        return self.dropped(pass_name) / f"{check_name(site, 'site')}.json"

    def data(self, pass_name: str) -> StorePath:
        """Folder of all attempts of a pass."""
        return self.pass_folder(pass_name) / "data"

    def table(self, site: str, name: str) -> StorePath:
        """One derived table of a site."""
        return self.tables(site) / f"{check_name(name, 'table')}.parquet"

    def parts(self, site: str, job: str, key: str) -> StorePath:
        """Folder of the finished parts of a job until it ends; `key` is 32 hexadecimal digits."""
        return self.tables(site) / f".{check_name(job, 'job')}.{key}.tmp"

    def tables(self, site: str) -> StorePath:
        """Folder of a site's derived tables."""
        return self.root / "tables" / check_name(site, "site")

    def derived(self, site: str) -> StorePath:
        """What the tables and figures of a site were made from, written after all of them."""
        return self.tables(site) / "derived.json"

    def figures(self, site: str) -> StorePath:
        """Folder of a site's figures."""
        return self.root / "figures" / check_name(site, "site")

    def annotations(self, site: str) -> StorePath:
        """Folder of what people say of a site's features."""
        return self.root / "annotations" / check_name(site, "site")

    def annotation(self, site: str, name: str) -> StorePath:
        """One edit of an annotation."""
        return self.annotations(site) / f"{check_name(name, 'annotation')}.json"

    @property
    def report(self) -> StorePath:
        """Folder of the report."""
        return self.root / "report"

    def report_site(self, site: str) -> StorePath:
        """Folder of a site's pages of the report."""
        return self.report / "sites" / check_name(site, "site")

    def shard_name(self, number: int) -> str:
        """Name of the shard with this number; names sort as numbers do up to a million."""
        return f"{number:06d}"
