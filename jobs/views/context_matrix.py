"""Any set of contexts × any set of features as a matrix: activations pooled over each context's rows.

Only the postings of the given features are read, one feature after another: the cost is their
activations. What is held is one number for each context in which one of them is active.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from scipy import sparse

from jobs.terminal.progress import track
from pipeline.statistics.pooling import Pooling, pool_entries
from pipeline.store import FeatureStore
from pipeline.store.reading.site_access import require_committed
from schemas.values import I64

MOST_CONTEXTS, MOST_FEATURES = 20_000, 1_000
"""Of a matrix: 80 MB."""


def all_contexts(store: FeatureStore, site: str) -> pl.DataFrame:
    """Contexts of the committed shards, in order: context, row_start (u64), and the labels."""
    shards = [record.name for record in store.committed(site)]
    require_committed(store, site)
    tokens = store.scan_tokens().filter(pl.col("shard").is_in(shards))
    return tokens.select("context", "row_start", *store.lake.label_columns).collect()


def pooled(
    store: FeatureStore, site: str, features: Sequence[int], contexts: pl.DataFrame, pooling: Pooling
) -> sparse.csr_matrix:
    """Activations of some features in each of `all_contexts`, float32 [C, features], sparse.

    Over the counted rows of a context, as `pipeline.statistics.pooling` has it.
    """
    starts = contexts["row_start"].to_numpy().astype(np.int64)
    counted, last = _counted_rows(store, site) if pooling in ("mean", "last") else (None, None)
    columns = []
    for feature in track(features, "heatmap: activations", len(features), "features"):
        rows, values = store.rows_of(site, feature)
        # the last context that begins at or before the row
        context = np.searchsorted(starts, rows.astype(np.int64), side="right") - 1
        if pooling == "last" and last is not None:
            kept = rows.astype(np.int64) == last[context]
            context, values = context[kept], values[kept]
        columns.append(pool_entries(context, np.zeros_like(context), values, pooling, counted))
    indptr = np.cumsum([0, *(len(context) for context, _, _ in columns)])
    # one feature after another is CSC; contexts are wanted, so CSR
    parts = [np.concatenate([column[i] for column in columns]) if columns else np.empty(0) for i in (2, 0)]
    return sparse.csc_matrix((*parts, indptr), shape=(len(starts), len(columns))).tocsr()


def _counted_rows(store: FeatureStore, site: str) -> tuple[I64, I64]:
    """Of each context of the committed shards its counted rows at the site's positions, and the last of them.

    int64 [C] each; the last is a row of the lake, -1 where no row counts.
    """
    counts, last = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for record in store.committed(site):
        tokens = store.token_shard(site, record.name, inputs=False)
        rows = np.arange(record.row_start, record.row_start + record.rows)
        starts = tokens.context_ptr[:-1]  # reduceat takes each stretch up to the next start: a context
        counts.append(np.add.reduceat(tokens.counted.astype(np.int64), starts))
        last.append(np.maximum.reduceat(np.where(tokens.counted, rows, -1), starts))
    return np.concatenate(counts), np.concatenate(last)


def strongest_contexts(matrix: sparse.csr_matrix, candidates: I64, n: int) -> I64:
    """Of the places `candidates`, ascending, the `n` in which |pooled| adds up to most over the features.

    Ascending; of equal sums the lower place is taken.
    """
    sums = np.asarray(abs(matrix[candidates]).astype(np.float64).sum(axis=1)).ravel()
    return np.sort(candidates[np.argsort(-sums, kind="stable")[:n]])
