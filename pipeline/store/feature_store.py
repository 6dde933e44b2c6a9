"""Open a store and ask: activations, contexts, partials and tables. Needs neither torch nor a model."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.statistics.examples.examples import strongest_of_each
from pipeline.store.formats.postings import PostingsFile
from pipeline.store.objects.verbs import listed
from pipeline.store.reading import scans
from pipeline.store.reading.contexts import ContextIndex
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.store.records import tables
from pipeline.store.records.catalog import Catalog, SiteInfo
from pipeline.store.records.compacted import Compacted, in_use, read_compactions
from pipeline.store.records.tokens import read_token_shard
from pipeline.store.records.vocabulary import Vocabulary
from schemas.errors import InputError
from schemas.layout import CONTROL, CONTROL_L0, CSR, DENSE, PARTIALS, POSTINGS, ROW_COUNTS, StorePath
from schemas.names import NAME
from schemas.records import ShardRecord
from schemas.tables.tables import Schema
from schemas.values import F32, U64, Postings, TokenShard

_READERS = 8
"""Files read at once by a query: opening and decoding them leaves the GIL alone."""

if TYPE_CHECKING:
    from scipy import sparse

    from pipeline.store.reading.dense_site import DenseSite
    from pipeline.store.upkeep.verification import VerifyReport
    from pipeline.tasks import Tasks


class FeatureStore(Catalog):
    """A store opened for reading (`FeatureStore.open(root)`); only derived tables are ever written."""

    @cached_property
    def _compactions(self) -> dict[str, list[Compacted]]:
        return {}

    @cached_property
    def _files(self) -> dict[StorePath, PostingsFile]:
        return {}

    def files(self, site: str, shard: str) -> ShardFiles:
        """Where the site's objects of one shard lie; jobs hand these to tasks. InputError without an SAE."""
        self.require_features(site)
        return self.all_files(site, shard)

    def all_files(self, site: str, shard: str) -> ShardFiles:
        """The same of any site."""
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
        """Those of all committed shards, in shard order."""
        self.require_features(site)
        return [self.files(site, record.name) for record in self.committed(site)]

    def csr(self, site: str, shard: str) -> sparse.csr_matrix:
        """Token-major activations, float32 [rows, d_sae]; made from the postings where there is no CSR."""
        return self.files(site, shard).read_csr()

    def dense(self, site: str) -> DenseSite:
        """Vectors x at the hook, shard by shard or by rows; InputError without layout dense."""
        from pipeline.store.reading.dense_site import DenseSite

        return DenseSite(self, site)

    def token_shard(self, site: str, shard: str, inputs: bool = True) -> TokenShard:
        """A token shard as the site counts it, its vectors only with `inputs`; checks its sha256."""
        tokens = read_token_shard(self.layout, self.lake, self._record(shard), inputs=inputs)
        return tokens.restrict(self.site(site).selection, self.lake.context_size)

    def postings(self, site: str, shard: str) -> Postings:
        """Feature-major activations, rows counted from the shard's first; else made from the CSR."""
        return self.files(site, shard).read_postings()

    def partials(self, site: str, shard: str) -> pl.DataFrame:
        """Statistics of one shard (`pipeline.statistics.partials_schema`)."""
        return self.files(site, shard).read_partials(range(self.site(site).d_sae))

    def row_counts(self, site: str, shard: str) -> pl.DataFrame:
        """L0 counts of one shard (`schemas.tables.tables.ROW_COUNTS`)."""
        return self.files(site, shard).read_row_counts()

    def fold_partials(self, site: str) -> pl.DataFrame:
        """Partials of all committed shards, combined in shard order."""
        from pipeline.store.derived.features import fold

        return fold(self.shard_files(site), range(self.site(site).d_sae))

    def fold_row_counts(self, site: str) -> pl.DataFrame:
        """L0 counts of all committed shards."""
        from pipeline.statistics.l0 import combine_counts

        return combine_counts(self.row_counts(site, record.name) for record in self.committed(site))

    def site_weights(
        self, site: str, names: Collection[str] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """The SAE's weights (all, or those of these names) and metadata, see `site.write_site_weights`."""
        from pipeline.store.records.site import read_site_weights

        return read_site_weights(self.layout, self.site(site).pass_name, site, names)

    def scan_tokens(self) -> pl.LazyFrame:
        """Contexts: shard, context and row_start (u64, lake-wide), token_ids, segments, counted, labels.

        `counted` is that of the lake: a site with positions counts fewer rows (`TokenShard.restrict`).
        """
        return scans.scan_tokens(self.layout, self.lake, self.shards)

    def scan_activations(self, site: str) -> pl.LazyFrame:
        """All activations: feature u32, row u64, context u64, position u32, activation f16 or f32.

        Sorted by (feature, row) in each file: those of the compaction, then those of shards that it does not
        cover. A filter on `feature` or `row` reads the row groups it needs.
        """
        self.require_features(site)
        paths = list[StorePath]()
        if compacted := self.compacted(site):
            compacted.require_files()
            paths += compacted.paths
        paths += [self.object_path(site, record.name, POSTINGS) for record in self.uncompacted(site)]
        return scans.scan_activations(paths, self.site(site).activation_dtype, self._contexts)

    def scan_features(self, site: str) -> pl.LazyFrame:
        """The feature table, a row each; InputError before `latentlake stats`, a warning when stale."""
        return self.scan_table(site, "features")

    def scan_table(self, site: str, name: str) -> pl.LazyFrame:
        """One derived table; InputError when it is absent, StaleTableWarning when shards came since."""
        return tables.scan_table(
            self.layout, self.require_features(site).name, name, self.receipts_digest(site)
        )

    def write_table(self, site: str, name: str, frame: pl.DataFrame) -> StorePath:
        """Write or replace a derived table, marked as made from what is committed."""
        return tables.write_table(self.layout, self.site(site).name, name, frame, self.receipts_digest(site))

    def write_table_parts(
        self,
        site: str,
        name: str,
        schema: Schema,
        parts: Iterable[pl.DataFrame],
        metadata: dict[str, str] | None = None,
    ) -> StorePath:
        """The same of a table that comes in parts, and is never whole in memory."""
        digest, site = self.receipts_digest(site), self.site(site).name
        return tables.write_table_parts(self.layout, site, name, schema, parts, digest, metadata)

    def tables(self, site: str) -> list[str]:
        """Names of the derived tables there are."""
        folder = self.layout.table(self.site(site).name, "features").parent
        files = (path for path in listed(folder) if path.suffix == ".parquet")
        return sorted(path.stem for path in files if NAME.fullmatch(path.stem))

    def has_table(self, site: str, name: str) -> bool:
        """Whether the table is there, fresh or stale."""
        return tables.has_table(self.layout, self.site(site).name, name)

    def is_stale(self, site: str, name: str) -> bool:
        """Whether shards were committed after the table was made."""
        return tables.is_stale(self.layout, self.site(site).name, name, self.receipts_digest(site))

    def made_from(self, site: str, name: str) -> str:
        """The digest of the receipts that the table was made from (compare `receipts_digest`)."""
        return tables.made_from(self.layout, self.site(site).name, name)

    def rows_of(self, site: str, feature: int) -> tuple[U64, F32]:
        """All rows (of the lake, ascending) and activations of one feature."""
        info = self.site(site)
        self.require_feature(site, feature)
        compacted, shards = self.compacted(site), self.uncompacted(site)
        parts = [compacted.rows_of(feature)] if compacted else []
        parts += self._readers.map(lambda record: self._rows_in_shard(info, record, feature), shards)
        rows = np.concatenate([rows for rows, _ in parts]) if parts else np.empty(0, np.uint64)
        values = np.concatenate([values for _, values in parts]) if parts else np.empty(0, np.float32)
        if compacted and shards and not (rows[1:] > rows[:-1]).all():
            order = np.argsort(rows)
            return rows[order], values[order]
        return rows, values

    def compactions(self, site: str) -> list[Compacted]:
        """The published compactions of a site of which every shard is committed as it was.

        One whose marker cannot be read is reported in a warning, once.
        """
        name = self.site(site).pass_name
        if name not in self._compactions:
            self._compactions[name], wrong = read_compactions(self.layout, name, self.receipts(site))
            for sentence in wrong:
                warnings.warn(sentence, stacklevel=2)
        return [compaction for compaction in self._compactions[name] if compaction.record.site == site]

    def compacted(self, site: str) -> Compacted | None:
        """The compaction that queries read: the one of most shards."""
        return in_use(self.compactions(site))

    def uncompacted(self, site: str) -> list[ShardRecord]:
        """Committed shards that it does not cover, whose own files are read."""
        compacted = self.compacted(site)
        covered = compacted.shards if compacted else frozenset()
        return [record for record in self.committed(site) if record.name not in covered]

    def contexts(
        self,
        site: str,
        feature: int,
        k: int = 20,
        where: pl.Expr | None = None,
        before: int | None = None,
        after: int | None = None,
        *,
        one_per_document: bool = False,
    ) -> pl.DataFrame:
        """The `k` rows in which |activation| is largest (ties: the lower row), each with its context.

        With `one_per_document` only the first of these rows in each document counts.

        Columns: row u64, activation f32, shard, context u64, position u32, document u64, document_offset u32
        (null for BOS), the labels of the firing segment, token_ids list[i32] and first_position u32, the
        position of token_ids[0]: the whole context, or `before` and `after` tokens around the row, clipped at
        the context's ends. `where` is a condition on any of these but the last two.
        """
        if k < 1:
            raise InputError(f"k is {k}: it must be positive")
        rows, values = self.rows_of(site, feature)
        if where is not None:
            kept = self._matching(rows, values, where)
            rows, values = rows[kept], values[kept]
        if one_per_document:
            document = self._contexts.describe(rows, ["document"])["document"].to_numpy()
            first = strongest_of_each(np.abs(values), document)
            rows, values = rows[first], values[first]
        best = strongest(values, k)
        described = self.describe_rows(rows[best], before, after)
        return described.insert_column(1, pl.Series("activation", values[best]))

    def describe_rows(self, rows: U64, before: int | None = None, after: int | None = None) -> pl.DataFrame:
        """Each of some rows of the lake with its context: the columns of `contexts` but activation."""
        if min(before or 0, after or 0) < 0:
            raise InputError(f"before is {before}, after {after}: neither may be negative")
        table = pl.DataFrame({"row": rows}, schema={"row": pl.UInt64})
        table = table.hstack(self._contexts.describe(rows, self._contexts.columns))
        return table.hstack(self._windows(table, before, after))

    def whole_characters(self, described: pl.DataFrame) -> pl.DataFrame:
        """Described rows with windows that hold the whole character that the row is a part of."""
        windows, firsts = [], []
        for context, position, first, ids in described.select(
            "context", "position", "first_position", "token_ids"
        ).iter_rows():
            start, stop = first, first + len(ids)
            if self.vocabulary.is_split([ids[position - first]]):
                ids = self._contexts.token_ids(context).tolist()
                low, high = self.vocabulary.reach(ids, position)
                start, stop = min(start, low), max(stop, high)
                ids = ids[start:stop]
            windows.append(ids)
            firsts.append(start)
        schema = {"token_ids": pl.List(pl.Int32()), "first_position": pl.UInt32()}
        return described.with_columns(
            pl.DataFrame({"token_ids": windows, "first_position": firsts}, schema=schema)
        )

    @property
    def vocabulary_size(self) -> int:
        """Tokens that the tokenizer knows; a model's own vocabulary may be padded beyond them."""
        return len(self.vocabulary)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each of some tokens that follow one another; a character stands at its last token."""
        return self.vocabulary.pieces(list(token_ids))

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token as it stands by itself; parts of characters are written out in hex."""
        return self.vocabulary.alone(list(token_ids))

    def verify(self, tasks: Tasks | None = None) -> VerifyReport:
        """Check every checksum, and recompute every statistic from the activations."""
        from pipeline.store.upkeep.verification import verify
        from pipeline.tasks import OneProcess

        return verify(self, tasks or OneProcess())

    @cached_property
    def _readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_READERS, thread_name_prefix="latentlake-reader")

    @cached_property
    def _contexts(self) -> ContextIndex:
        return ContextIndex(self.layout, self.lake, self.shards)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What tokens put into a text."""
        return Vocabulary.read(self.layout.vocabulary)

    def _postings_file(self, site: str, shard: str) -> PostingsFile:
        path = self.object_path(site, shard, POSTINGS)
        if path not in self._files:
            self._files[path] = PostingsFile(path)
        return self._files[path]

    def _rows_in_shard(self, info: SiteInfo, record: ShardRecord, feature: int) -> tuple[U64, F32]:
        if "feature_major" in info.layouts:
            return self._postings_file(info.name, record.name).rows_of(feature)
        column = self.csr(info.name, record.name).getcol(feature).tocoo()
        return column.row.astype(np.uint64) + np.uint64(record.row_start), column.data

    def _matching(self, rows: U64, values: F32, where: pl.Expr) -> NDArray[np.bool_]:
        """Which rows the condition holds for (null: not)."""
        needed = set(where.meta.root_names())
        known = self._contexts.columns
        if unknown := needed - {"row", "activation", *known}:
            raise InputError(
                f"where names {', '.join(sorted(unknown))}; there are row, activation, {', '.join(known)}"
            )
        frame = pl.DataFrame({"row": rows, "activation": values})
        frame = frame.hstack(self._contexts.describe(rows, [name for name in known if name in needed]))
        try:
            kept = frame.with_columns(where.fill_null(value=False).cast(pl.Boolean).alias("kept"))["kept"]
        except pl.exceptions.PolarsError as error:
            raise InputError(f"where is no condition on rows: {' '.join(str(error).split())[:200]}") from None
        return kept.to_numpy()

    def _windows(self, described: pl.DataFrame, before: int | None, after: int | None) -> pl.DataFrame:
        firsts, windows = [], []
        for context, position in zip(
            described["context"].to_list(), described["position"].to_list(), strict=True
        ):
            ids = self._contexts.token_ids(context)
            first = 0 if before is None else max(0, position - before)
            firsts.append(first)
            windows.append(ids[first:] if after is None else ids[first : position + after + 1])
        schema = {"token_ids": pl.List(pl.Int32()), "first_position": pl.UInt32()}
        return pl.DataFrame({"token_ids": windows, "first_position": firsts}, schema=schema)


def strongest(values: F32, k: int) -> NDArray[np.intp]:
    """Places of the `k` largest |value|, largest first; equal ones in the order in which they stand."""
    size = np.abs(values)
    places = np.arange(len(size))
    if 0 < k < len(size):
        places = np.flatnonzero(size >= np.partition(size, len(size) - k)[len(size) - k])
    return places[np.argsort(-size[places], kind="stable")][:k]
