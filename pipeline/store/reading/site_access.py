"""What one site of a store holds: the files of its shards, its compactions and its derived tables."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import polars as pl
from numpy.typing import NDArray

from pipeline.store.objects.verbs import listed
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.store.records import tables
from pipeline.store.records.catalog import Catalog
from pipeline.store.records.compacted import Compacted, in_use, read_compactions
from pipeline.store.records.tokens import read_token_shard
from schemas.errors import InputError
from schemas.layout import CONTROL, CONTROL_L0, CSR, DENSE, PARTIALS, POSTINGS, ROW_COUNTS, StorePath
from schemas.names import NAME
from schemas.records import ShardRecord
from schemas.tables.tables import Schema
from schemas.values import Postings, TokenShard

if TYPE_CHECKING:
    from scipy import sparse


class SiteAccess(Catalog):
    """The data of each site, by shard, and its tables; what computes tables from them takes this."""

    @cached_property
    def _compactions(self) -> dict[str, list[Compacted]]:
        return {}

    def files(self, site: str, shard: str) -> ShardFiles:
        """The files of one shard of the site, as jobs pass them to tasks. InputError without an SAE."""
        self.require_features(site)
        return self.all_files(site, shard)

    def all_files(self, site: str, shard: str) -> ShardFiles:
        """The files of one shard of any site, with or without an SAE."""
        info, record = self.site(site), self._record(shard)
        path = partial(self.object_path, site, shard)
        folder = path(PARTIALS if info.has_sae else DENSE).parent
        return ShardFiles(
            record=record,
            d_sae=info.d_sae,
            activation_dtype=info.activation_dtype,
            partials=folder / PARTIALS,
            row_counts=path(ROW_COUNTS) if info.has_sae else folder / ROW_COUNTS,
            postings=path(POSTINGS) if "feature_major" in info.layouts else None,
            csr=path(CSR) if "token_major" in info.layouts else None,
            control=path(CONTROL) if info.control else None,
            control_l0=path(CONTROL_L0) if info.control else None,
            dense=path(DENSE) if "dense" in info.layouts else None,
        )

    def shard_files(self, site: str) -> list[ShardFiles]:
        """The files of all committed shards, in shard order."""
        self.require_features(site)
        return [self.files(site, record.name) for record in self.committed(site)]

    def csr(self, site: str, shard: str) -> sparse.csr_matrix:
        """Token-major activations, float32 [rows, d_sae]; made from the postings where there is no CSR."""
        return self.files(site, shard).read_csr()

    def token_shard(self, site: str, shard: str, inputs: bool = True) -> TokenShard:
        """A token shard as the site counts it, with its vectors only if `inputs`; checks its sha256."""
        tokens = read_token_shard(self.layout, self.lake, self._record(shard), inputs=inputs)
        return tokens.restrict(self.site(site).selection, self.lake.context_size)

    def postings(self, site: str, shard: str) -> Postings:
        """Feature-major activations, rows counted from the shard's first; without postings, from the CSR."""
        return self.files(site, shard).read_postings()

    def partials(self, site: str, shard: str) -> pl.DataFrame:
        """Statistics of one shard (`pipeline.statistics.partials_schema`)."""
        return self.files(site, shard).read_partials(range(self.site(site).d_sae))

    def row_counts(self, site: str, shard: str) -> pl.DataFrame:
        """L0 counts of one shard (`schemas.tables.tables.ROW_COUNTS`)."""
        return self.files(site, shard).read_row_counts()

    def site_weights(
        self, site: str, names: Collection[str] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The SAE's weights (all, or those of these names) and metadata, see `site.write_site_weights`."""
        from pipeline.store.records.site import read_site_weights

        return read_site_weights(self.layout, self.site(site).pass_name, site, names)

    def compactions(self, site: str) -> list[Compacted]:
        """The published compactions of a site all of whose shards are still committed unchanged.

        One whose marker cannot be read is reported in a warning, once.
        """
        name = self.site(site).pass_name
        if name not in self._compactions:
            self._compactions[name], wrong = read_compactions(self.layout, name, self.receipts(site))
            for sentence in wrong:
                warnings.warn(sentence, stacklevel=2)
        return [compaction for compaction in self._compactions[name] if compaction.record.site == site]

    def compacted(self, site: str) -> Compacted | None:
        """The compaction that queries read: the one that covers the most shards."""
        return in_use(self.compactions(site))

    def uncompacted(self, site: str) -> list[ShardRecord]:
        """The committed shards that it does not cover; their own files are read."""
        compacted = self.compacted(site)
        covered = compacted.shards if compacted else frozenset()
        return [record for record in self.committed(site) if record.name not in covered]

    def scan_table(self, site: str, name: str, *, warn_stale: bool = True) -> pl.LazyFrame:
        """One derived table; InputError if it is absent, StaleTableWarning if shards were committed since."""
        digest = self.receipts_digest(site) if warn_stale else None
        return tables.scan_table(self.layout, self.require_features(site).name, name, digest)

    def write_table(self, site: str, name: str, frame: pl.DataFrame) -> StorePath:
        """Write or replace a derived table, marked as made from the shards that are committed now."""
        return tables.write_table(self.layout, self.site(site).name, name, frame, self.receipts_digest(site))

    def write_table_parts(
        self,
        site: str,
        name: str,
        schema: Schema,
        parts: Iterable[pl.DataFrame],
        metadata: dict[str, str] | None = None,
    ) -> StorePath:
        """Write or replace a derived table in parts, without holding all of it in memory."""
        digest, site = self.receipts_digest(site), self.site(site).name
        return tables.write_table_parts(self.layout, site, name, schema, parts, digest, metadata)

    def reads_tokens(self, site: str) -> bool:
        """Whether a row of the site is a token, and not an image, a vector or the mean of a context."""
        return self.lake.inputs is None and not self.site(site).selection.is_averaged

    def tables(self, site: str | None = None) -> list[str]:
        """Names of the derived tables that exist."""
        folder = self.layout.table(self.site(site).name, "features").parent
        files = (path for path in listed(folder) if path.suffix == ".parquet")
        return sorted(path.stem for path in files if NAME.fullmatch(path.stem))

    def has_table(self, site: str, name: str) -> bool:
        """Whether the table exists, up to date or stale."""
        return tables.has_table(self.layout, self.site(site).name, name)

    def is_stale(self, site: str, name: str) -> bool:
        """Whether shards were committed after the table was made."""
        return tables.is_stale(self.layout, self.site(site).name, name, self.receipts_digest(site))

    def made_from(self, site: str, name: str) -> str:
        """The digest of the receipts that the table was made from (compare `receipts_digest`)."""
        return tables.made_from(self.layout, self.site(site).name, name)


def require_committed(store: SiteAccess, site: str) -> None:
    """InputError where no shard of the site is committed yet."""
    if not store.committed(site):
        raise InputError(f"site {site!r} has no committed shard: run `latentlake extract` first")
