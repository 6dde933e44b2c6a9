"""Where everything lies below a store's root. Nothing else in latentlake joins paths of the store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from schemas.run_file import check_name

CSR, POSTINGS, PARTIALS, ROW_COUNTS = "csr.zarr", "postings.parquet", "partials.parquet", "row_counts.parquet"


@dataclass(frozen=True)
class Layout:
    """Paths of the store at `root`."""

    root: Path

    @property
    def lake(self) -> Path:
        """The lake's record."""
        return self.root / "lake.json"

    @property
    def vocabulary(self) -> Path:
        """Text of every token."""
        return self.root / "vocabulary.parquet"

    @property
    def corpus(self) -> Path:
        """Folder of the corpus chain."""
        return self.root / "corpus"

    def corpus_link(self, number: int) -> Path:
        """One link of the corpus chain."""
        return self.corpus / f"{number}.json"

    def tokens(self, shard: str) -> Path:
        """Token shard."""
        return self.root / "tokens" / f"{check_name(shard, 'shard')}.parquet"

    @property
    def tokenize_lock(self) -> Path:
        """Locked while token shards are written; empty."""
        return self.root / "tokens" / ".lock"

    @property
    def passes(self) -> Path:
        """Folder of the passes."""
        return self.root / "passes"

    def pass_folder(self, pass_name: str) -> Path:
        """Folder of one pass."""
        return self.passes / check_name(pass_name, "pass")

    def plan(self, pass_name: str) -> Path:
        """The pass's plan."""
        return self.pass_folder(pass_name) / "plan.json"

    def commits(self, pass_name: str) -> Path:
        """Folder of the commit markers."""
        return self.pass_folder(pass_name) / "commits"

    def commit(self, pass_name: str, shard: str) -> Path:
        """Commit marker of one shard."""
        return self.commits(pass_name) / f"{check_name(shard, 'shard')}.json"

    def attempt(self, pass_name: str, shard: str, attempt: str) -> Path:
        """Folder of one attempt at a shard."""
        return (
            self.pass_folder(pass_name) / "data" / check_name(shard, "shard") / check_name(attempt, "attempt")
        )

    def compactions(self, pass_name: str) -> Path:
        """Folder of the compactions of a pass, and of their markers."""
        return self.pass_folder(pass_name) / "compactions"

    def compaction_marker(self, pass_name: str, compaction: str) -> Path:
        """What publishes one compaction, put when its files are there."""
        return self.compactions(pass_name) / f"{check_name(compaction, 'compaction')}.json"

    def compaction(self, pass_name: str, compaction: str) -> Path:
        """Folder of one compaction's files."""
        return self.compactions(pass_name) / check_name(compaction, "compaction")

    def manifest(self, pass_name: str) -> Path:
        """Compacted view of the commits."""
        return self.pass_folder(pass_name) / "manifest.parquet"

    def events(self, pass_name: str) -> Path:
        """Log of what happened to the pass, one JSON object a line."""
        return self.pass_folder(pass_name) / "events.jsonl"

    def site(self, pass_name: str, site: str) -> Path:
        """Weights and metadata of a site, for jobs without torch."""
        return self.pass_folder(pass_name) / "sites" / f"{check_name(site, 'site')}.zarr"

    def table(self, site: str, name: str) -> Path:
        """One derived table of a site."""
        return self.root / "tables" / check_name(site, "site") / f"{check_name(name, 'table')}.parquet"

    def derived(self, site: str) -> Path:
        """What the tables and figures of a site were made from, written after all of them."""
        return self.root / "tables" / check_name(site, "site") / "derived.json"

    def figures(self, site: str) -> Path:
        """Folder of a site's figures."""
        return self.root / "figures" / check_name(site, "site")

    def shard_name(self, number: int) -> str:
        """Name of the shard with this number; names sort as numbers do up to a million."""
        return f"{number:06d}"
