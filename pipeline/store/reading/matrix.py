"""Activations as sparse matrices: of rows as they are stored, and pooled over documents or contexts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import polars as pl
from scipy import sparse

from pipeline.statistics.documents.clustered import document_rows
from pipeline.statistics.pooling import POOLINGS, Pooling, pool_rows
from pipeline.store.reading.label_filters import (
    Where,
    document_condition,
    documents_that_fit,
    read_labels,
)
from pipeline.store.reading.site_access import require_committed
from pipeline.store.records.tokens import read_document_labels
from schemas.errors import InputError
from schemas.records import ShardRecord
from schemas.values import I64, U32, TokenShard

if TYPE_CHECKING:
    from pipeline.store.feature_store import FeatureStore

Group: TypeAlias = Literal["document", "context", "token"]
GROUPS: tuple[Group, ...] = get_args(Group)

MOST_ACTIVATIONS = 1 << 29
"""Of a matrix that is held whole: 4 GiB of columns and values."""


class Matrix(NamedTuple):
    """Activations pooled by group: `values` float32 [R, F], sparse, with what its rows and columns are.

    `rows`: a frame of R rows, `document`, `context` or `row` u64, then `counted_rows` i64; of documents the
    labels too. `features` uint32 [F].
    """

    values: sparse.csr_matrix
    rows: pl.DataFrame
    features: U32


def pooled_matrix(
    store: FeatureStore,
    site: str,
    rows: Group = "document",
    pool: Pooling = "max",
    features: Sequence[int] | None = None,
    where: Where | None = None,
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> Matrix:
    """A site's activations with a row for each document, context or token that has counted rows.

    `pool` is that of `pipeline.statistics.pooling`, over the counted rows of the group: max (the strongest,
    with its sign), mean (zeros included), sum, last. `features`: their columns, in this order; None: all.
    `where`: only rows of documents that fit a condition on labels. Memory: the matrix, one shard at a time,
    and the activations of `features`; time: one reading of these, or else of all. `advance` counts shards.
    InputError for another `rows` or `pool`, a feature that is not there, and a condition that is none or that
    no document fits.
    """
    site = store.require_features(site).name
    if rows not in GROUPS:
        raise InputError(f"rows {rows!r} is not one of {', '.join(GROUPS)}")
    if pool not in POOLINGS:
        raise InputError(f"pool {pool!r} is not one of {', '.join(POOLINGS)}")
    chosen = _columns(store, site, features)
    condition = None if where is None else document_condition(store, where)
    require_committed(store, site)
    by_row = None if features is None else _by_row(activation_matrix(store, site, features))
    values, frames = list[sparse.csr_matrix](), list[pl.DataFrame]()
    for record in store.committed(site):
        matrix = store.csr(site, record.name) if by_row is None else _stretch(by_row, record)
        counted, groups = _groups(store, site, record, rows, condition)
        _, group = np.unique(groups, return_inverse=True)  # numbered in their order, which is that of rows
        values.append(
            pool_rows(matrix[counted], group.astype(np.int64), int(group.max(initial=-1)) + 1, pool)
        )
        frames.append(_described(store, record, rows, groups))
        advance(1)
    if condition is not None and not any(frame.height for frame in frames):
        raise InputError(f"where {where}: no document that fits has a row that the site counts")
    return Matrix(sparse.vstack(values, "csr", np.float32), pl.concat(frames), chosen)


def activation_matrix(
    store: FeatureStore, site: str, features: Sequence[int] | None = None, rows: range | None = None
) -> sparse.csr_matrix | sparse.csc_matrix:
    """Stored activations, float32 [rows, features]: of some features, of some rows, or of both.

    Rows are those of the lake, or `rows` of them; columns are all features, or `features` in this order. Some
    features of all rows come by column (CSC), for only they are read; all else comes by row (CSR), and only
    the shards with `rows` are read. Rows of shards that are not committed are empty. InputError for a feature
    or rows that are not there, and for more than MOST_ACTIVATIONS.
    """
    site = store.require_features(site).name
    chosen, n_rows = _columns(store, site, features), sum(record.rows for record in store.shards)
    if features is not None and rows is None:
        parts = [store.rows_of(site, feature) for feature in chosen.tolist()]
        indptr = np.cumsum([0, *(len(part) for part, _ in parts)])
        row, value = (np.concatenate(each) for each in zip(*parts, strict=True)) if parts else ([], [])
        entries = (np.asarray(value, np.float32), np.asarray(row, np.int64), indptr)
        return sparse.csc_matrix(entries, shape=(n_rows, len(parts)))
    inside = range(n_rows) if rows is None else rows
    if inside.step != 1 or inside.start < 0 or inside.stop > n_rows:
        raise InputError(f"rows {inside} are not in the lake: give a range within 0 to {n_rows:,}")
    _require_size(store, site, inside)
    committed = {record.name for record in store.committed(site)}
    d_sae = store.site(site).d_sae
    stretches = [sparse.csr_matrix((0, d_sae), dtype=np.float32)]
    for record in store.shards:
        low = max(inside.start, record.row_start) - record.row_start
        high = min(inside.stop, record.row_start + record.rows) - record.row_start
        if low < high and record.name in committed:
            stretches.append(store.files(site, record.name).read_rows(range(low, high)))
        elif low < high:
            stretches.append(sparse.csr_matrix((high - low, d_sae), dtype=np.float32))
    matrix = sparse.vstack(stretches, "csr", np.float32)
    return matrix if features is None else matrix[:, chosen]


def _require_size(store: FeatureStore, site: str, rows: range) -> None:
    """InputError where rows may hold more activations than a matrix can take."""
    share = len(rows) / max(sum(record.rows for record in store.committed(site)), 1)
    total = sum(receipt.nnz for receipt in store.site_receipts(site).values())
    if (expected := min(share, 1) * total) > MOST_ACTIVATIONS:
        raise InputError(
            f"{len(rows):,} rows of site {site!r} hold some {expected:.2g} activations, and a matrix takes "
            f"{MOST_ACTIVATIONS:,} at most: give features or fewer rows, or read them by scan_activations"
        )


def _columns(store: FeatureStore, site: str, features: Iterable[int] | None) -> U32:
    """The features whose columns a matrix has, uint32 [F]."""
    if features is None:
        return np.arange(store.site(site).d_sae, dtype=np.uint32)
    chosen = [int(feature) for feature in features]
    for feature in chosen:
        store.require_feature(site, feature)
    return np.array(chosen, np.uint32)


def _by_row(matrix: sparse.csr_matrix | sparse.csc_matrix) -> sparse.coo_matrix:
    """The entries of a matrix of the lake's rows, sorted by row."""
    entries = matrix.tocoo()
    order = np.argsort(entries.row, kind="stable")
    parts = (entries.data[order], (entries.row[order], entries.col[order]))
    return sparse.coo_matrix(parts, shape=entries.shape)


def _stretch(by_row: sparse.coo_matrix, record: ShardRecord) -> sparse.csr_matrix:
    """The rows of a shard: float32 [rows, F]."""
    place = slice(*np.searchsorted(by_row.row, [record.row_start, record.row_start + record.rows]))
    parts = (by_row.data[place], (by_row.row[place] - record.row_start, by_row.col[place]))
    return sparse.csr_matrix(parts, shape=(record.rows, by_row.shape[1]))


def _groups(
    store: FeatureStore, site: str, record: ShardRecord, rows: Group, condition: pl.Expr | None
) -> tuple[I64, I64]:
    """The counted rows of a shard that fit, from its first, and the number of each one's group: int64 [Q]."""
    tokens = store.token_shard(site, record.name, inputs=False)
    counted = np.flatnonzero(tokens.counted)
    if condition is not None:
        (fits,) = documents_that_fit(store, record, [condition])
        counted = counted[fits[document_rows(tokens)[0][counted]]]
    return counted, _group_of_row(tokens, rows)[counted]


def _described(store: FeatureStore, record: ShardRecord, rows: Group, groups: I64) -> pl.DataFrame:
    """The groups of a shard: their numbers, counted rows and, of documents, labels."""
    name = "row" if rows == "token" else rows
    counts = pl.Series(name, groups.astype(np.uint64)).value_counts(name="counted_rows").sort(name)
    frame = counts.cast({"counted_rows": pl.Int64})
    if rows != "document":
        return frame
    numbers = read_document_labels(store.layout, record, [])
    labels = read_labels(store, record, list(store.lake.label_columns))
    # a label may be called as a column of the frame
    labels = labels.rename({name: f"{name}_label" for name in labels.columns if name in frame.columns})
    return frame.join(numbers.hstack(labels), on="document", how="left", maintain_order="left")


def _group_of_row(tokens: TokenShard, rows: Group) -> I64:
    """The lake-wide number of each row's group, int64 [N]."""
    if rows == "document":
        return tokens.document.astype(np.int64)
    if rows == "context":
        return tokens.context_of_row()
    return np.arange(tokens.row_start, tokens.row_start + tokens.n_rows)
