"""Open a store and ask: activations, contexts, partials and tables. Needs neither torch nor a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.statistics.examples.examples import strongest_of_each
from pipeline.store.formats.postings import PostingsFile
from pipeline.store.reading import scans
from pipeline.store.reading.contexts import ContextIndex
from pipeline.store.reading.site_access import SiteAccess
from pipeline.store.reading.windows import Windows, windows_of
from pipeline.store.records.catalog import SiteInfo
from pipeline.store.records.vocabulary import Vocabulary
from schemas.errors import InputError
from schemas.layout import POSTINGS, StorePath
from schemas.records import ShardRecord
from schemas.tables.tables import Schema
from schemas.values import F32, I32, U64

_READERS = 8
"""Files read at once by a query: opening and decoding them leaves the GIL alone."""

_WINDOW: Schema = {"token_ids": pl.List(pl.Int32()), "first_position": pl.UInt32()}
"""Columns of the tokens around a row."""

if TYPE_CHECKING:
    from scipy import sparse

    from pipeline.store.derived.names import FeatureNames
    from pipeline.store.reading.dense_site import DenseSite
    from pipeline.store.upkeep.verification import VerifyReport
    from pipeline.tasks import Tasks


class FeatureStore(SiteAccess):
    """A store opened for reading (`FeatureStore.open(root)`); only derived tables are ever written."""

    @cached_property
    def _postings_file(self) -> Callable[[StorePath], PostingsFile]:
        return cache(PostingsFile)

    def dense(self, site: str | None = None) -> DenseSite:
        """Vectors x at the hook, shard by shard or by rows; InputError without layout dense."""
        from pipeline.store.reading.dense_site import DenseSite

        return DenseSite(self, self.site(site).name)

    def fold_partials(self, site: str | None = None) -> pl.DataFrame:
        """The partials of all committed shards, combined in shard order."""
        from pipeline.store.derived.features import fold

        info = self.require_features(site)
        return fold(self.shard_files(info.name), range(info.d_sae))

    def fold_row_counts(self, site: str | None = None) -> pl.DataFrame:
        """L0 counts of all committed shards."""
        from pipeline.statistics.l0 import combine_counts

        site = self.require_features(site).name
        return combine_counts(self.row_counts(site, record.name) for record in self.committed(site))

    def scan_tokens(self) -> pl.LazyFrame:
        """Contexts: shard, context and row_start (u64, lake-wide), token_ids, segments, counted, labels.

        `counted` is that of the lake: a site with positions counts fewer rows (`TokenShard.restrict`).
        """
        return scans.scan_tokens(self.layout, self.lake, self.shards)

    def scan_activations(self, site: str | None = None) -> pl.LazyFrame:
        """All activations: feature u32, row u64, context u64, position u32, activation f16 or f32.

        Sorted by (feature, row) within each file: first those of the compaction, then those of shards that
        it does not cover. A filter on `feature` or `row` reads the row groups it needs.
        """
        site = self.require_features(site).name
        paths = list[StorePath]()
        if compacted := self.compacted(site):
            compacted.require_files()
            paths += compacted.paths
        paths += [self.object_path(site, record.name, POSTINGS) for record in self.uncompacted(site)]
        return scans.scan_activations(paths, self.site(site).activation_dtype, self._contexts)

    def scan_features(self, site: str | None = None) -> pl.LazyFrame:
        """The feature table, a row per feature; InputError before `latentlake stats`, a warning if stale."""
        return self.scan_table(self.require_features(site).name, "features")

    def largest_activation(self, site: str, feature: int) -> float:
        """The largest |activation| of a feature in its site's feature table; 0 where it never fires."""
        self.require_feature(site, feature)
        row = self.scan_features(site).filter(pl.col("feature") == feature)
        low, high = row.select("min_activation", "max_activation").collect().row(0)
        return float(max(abs(low or 0.0), abs(high or 0.0)))

    def rows_of(self, site: str, feature: int) -> tuple[U64, F32]:
        """All rows (of the lake, ascending) and activations of one feature."""
        info = self.site(site)
        self.require_feature(site, feature)
        compacted, shards = self.compacted(site), self.uncompacted(site)
        parts = [(np.empty(0, np.uint64), np.empty(0, np.float32))]
        parts += [compacted.rows_of(feature)] if compacted else []
        parts += self._readers.map(partial(self._rows_in_shard, info, feature), shards)
        rows, values = (np.concatenate(part) for part in zip(*parts, strict=True))
        if compacted and shards and not (rows[1:] > rows[:-1]).all():
            order = np.argsort(rows)
            return rows[order], values[order]
        return rows, values

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
        rows, values = self.rows_where(*self.rows_of(site, feature), where)
        if one_per_document:
            document = self._contexts.describe(rows, ["document"])["document"].to_numpy()
            first = strongest_of_each(np.abs(values), document)
            rows, values = rows[first], values[first]
        best = strongest(values, k)
        described = self.describe_rows(rows[best], before, after)
        return described.insert_column(1, pl.Series("activation", values[best]))

    def rows_where(self, rows: U64, values: F32, where: pl.Expr | None) -> tuple[U64, F32]:
        """Those of a feature's rows and activations for which a condition as that of `contexts` holds."""
        if where is None:
            return rows, values
        kept = self._matching(rows, values, where)
        return rows[kept], values[kept]

    def windows(self, examples: pl.DataFrame, rows: U64, values: F32) -> pl.DataFrame:
        """Examples of one feature with the tokens around them, as `cut_windows` writes them.

        `rows` and `values` are all that the feature has (`rows_of`).
        """
        return windows_of(self._contexts, examples, rows, values)

    def context_tokens(self, context: int) -> tuple[int, I32]:
        """First row of a context in the lake, and its token ids int32 [T]; InputError where there is none."""
        n_contexts = len(self._contexts.row_starts) - 1
        if not 0 <= context < n_contexts:
            raise InputError(f"context {context} is not in the lake: its contexts are 0 to {n_contexts - 1}")
        return int(self._contexts.row_starts[context]), self._contexts.token_ids(context)

    def context_activations(self, site: str, context: int) -> sparse.csr_matrix:
        """What fires in a context, float32 [T, d_sae]; InputError where its shard is not committed."""
        first, ids = self.context_tokens(context)
        for record in self.committed(site):
            if record.row_start <= first < record.row_start + record.rows:
                start = first - record.row_start
                return self.files(site, record.name).read_rows(range(start, start + len(ids)))
        raise InputError(f"context {context} is in a shard that site {site!r} has not committed yet")

    def describe_rows(self, rows: U64, before: int | None = None, after: int | None = None) -> pl.DataFrame:
        """The given rows of the lake with their contexts: the columns of `contexts` except activation."""
        if min(before or 0, after or 0) < 0:
            raise InputError(f"before is {before}, after {after}: neither may be negative")
        table = pl.DataFrame({"row": rows}, schema={"row": pl.UInt64})
        table = table.hstack(self._contexts.describe(rows, self._contexts.columns))
        # the tokens around each row, clipped at its context's ends
        windows = Windows.around(rows.astype(np.int64), self._contexts.row_starts, before, after)
        firsts = windows.first - windows.begin
        places = zip(windows.context.tolist(), firsts.tolist(), windows.lengths.tolist(), strict=True)
        ids = [self._contexts.token_ids(context)[first : first + n] for context, first, n in places]
        columns = {"token_ids": ids, "first_position": firsts.tolist()}
        return table.hstack(pl.DataFrame(columns, schema=_WINDOW))

    def documents(self) -> pl.DataFrame:
        """The documents with tokens: document u64, `row` u64, its first, `rows` i64, and the labels.

        A document's rows are its tokens, its separator, and BOS where a context begins with it.
        """
        return self._contexts.documents()

    def documents_of(self, rows: U64) -> U64:
        """The document of each of some rows of the lake, uint64; InputError for a row that is not there."""
        n_rows = int(self._contexts.row_starts[-1])
        if len(rows) and (last := int(rows.max())) >= n_rows:
            raise InputError(f"row {last} is not in the lake: its rows are 0 to {n_rows - 1}")
        documents: U64 = self._contexts.describe(rows, ["document"])["document"].to_numpy()
        return documents

    def read_contexts(self) -> None:
        """Read what queries need to know of contexts, which they else read when they first need it."""
        self._contexts.read()

    def tokens_at(self, rows: U64) -> I32:
        """The token id of each of some rows of the lake."""
        return self._contexts.tokens_at(rows)

    def names(self, site: str, features: Iterable[int] = ()) -> FeatureNames:
        """What the site's features are called, those of `features` read together; an object for each site."""
        if site not in self._names:
            from pipeline.store.derived.names import FeatureNames

            self._names[site] = FeatureNames(self, site)
        return self._names[site].read(features)

    def whole_characters(self, described: pl.DataFrame) -> pl.DataFrame:
        """Described rows whose windows are extended to hold the whole character that the row is part of."""
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
        columns = {"token_ids": windows, "first_position": firsts}
        return described.with_columns(pl.DataFrame(columns, schema=_WINDOW))

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens of the tokenizer; a model's own vocabulary may be padded beyond them."""
        return len(self.vocabulary)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each of several consecutive tokens; a character is shown at its last token."""
        return self.vocabulary.pieces(list(token_ids))

    def token_texts(self, token_ids: Sequence[int]) -> list[str]:
        """The text of each token on its own; parts of characters are written in hexadecimal."""
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
    def _names(self) -> dict[str, FeatureNames]:
        return {}

    @cached_property
    def _contexts(self) -> ContextIndex:
        return ContextIndex(self.layout, self.lake, self.shards)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The text of each token."""
        return Vocabulary.read(self.layout.vocabulary)

    def _rows_in_shard(self, info: SiteInfo, feature: int, record: ShardRecord) -> tuple[U64, F32]:
        if "feature_major" in info.layouts:
            return self._postings_file(self.object_path(info.name, record.name, POSTINGS)).rows_of(feature)
        column = self.csr(info.name, record.name).getcol(feature).tocoo()
        return column.row.astype(np.uint64) + np.uint64(record.row_start), column.data

    def _matching(self, rows: U64, values: F32, where: pl.Expr) -> NDArray[np.bool_]:
        """Which rows the condition holds for (null: not)."""
        needed = set(where.meta.root_names())
        known = self._contexts.columns
        if unknown := needed - {"row", "activation", *known}:
            raise InputError(
                f"where names {', '.join(sorted(unknown))}; known: row, activation, {', '.join(known)}"
            )
        frame = pl.DataFrame({"row": rows, "activation": values})
        frame = frame.hstack(self._contexts.describe(rows, [name for name in known if name in needed]))
        try:
            kept = frame.with_columns(where.fill_null(value=False).cast(pl.Boolean).alias("kept"))["kept"]
        except pl.exceptions.PolarsError as error:
            raise InputError(
                f"where is not a condition on rows: {' '.join(str(error).split())[:200]}"
            ) from None
        return kept.to_numpy()


def strongest(values: F32, k: int) -> NDArray[np.intp]:
    """Places of the `k` largest |value|, largest first; equal ones in the order in which they stand."""
    size = np.abs(values)
    places = np.arange(len(size))
    if 0 < k < len(size):
        places = np.flatnonzero(size >= np.partition(size, len(size) - k)[len(size) - k])
    return places[np.argsort(-size[places], kind="stable")][:k]
