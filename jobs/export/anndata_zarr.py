"""AnnData: <site>.zarr, X a CSR matrix of rows, contexts or documents by features.

Written as anndata 0.12 specifies its files (docs/fileformat-prose.md; encodings anndata 0.1.0, csr_matrix
0.1.0, dataframe 0.2.0, categorical 0.2.0, nullable-integer 0.1.0, string-array 0.2.0, array 0.2.0; Zarr 3),
shard by shard, so without anndata itself and with one shard's activations in memory. `obs` tells of each row
where it stands and its labels; `var` is the feature table (and `profile`, where there is one) without lists.
Cost: one reading of the CSR; pooling sorts a shard's activations.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import zarr
from numpy.typing import NDArray
from scipy import sparse
from zarr.codecs import BloscCodec

from jobs.progress import counting
from pipeline.store import FeatureStore
from pipeline.store.contexts import ContextIndex
from schemas.values import I64, U32, TokenShard

Rows = Literal["token", "context", "document"]
Pool = Literal["sum", "mean_all", "max"]

_CHUNK = 1 << 20
_TEXT_CHUNK = 1 << 16


def export(store: FeatureStore, site: str, chosen: U32, out: Path, *, rows: Rows, pool: Pool) -> int:
    """Write out/<site>.zarr; how many rows it has.

    `rows` token: every row of the lake whose shard is committed, whether counted or not. context, document:
    each one's activations pooled by `pool`, over its counted rows: their `sum`, their mean with zeros
    (`mean_all`), or the strongest, with its sign (`max`); sums are taken in float64. A document of which a
    context holds only a part has its own rows alone.
    """
    target = _Target(zarr.open_group(out / f"{site}.zarr", mode="w-", zarr_format=3), len(chosen))
    shards = store.shard_files(site)
    with counting(f"export anndata {site}", sum(shard.record.rows for shard in shards), "rows") as advance:
        for shard in shards:
            tokens = store.token_shard(site, shard.record.name)
            matrix = shard.read_csr()[:, chosen.astype(np.int64)]
            if rows == "token":
                obs = _obs_of_rows(store, shard.record, tokens)
            else:
                matrix, obs = _pooled(store, shard.record, tokens, matrix, rows, pool)
            target.add(matrix, obs)
            advance(shard.record.rows)
    uns = {
        "site": site,
        "rows": rows,
        "pool": pool if rows != "token" else "none",
        "hook_name": store.site(site).hook_name,
    }
    target.finish(feature_table(store, site, chosen), uns)
    return target.n_rows


def feature_table(store: FeatureStore, site: str, chosen: U32) -> pl.DataFrame:
    """The rows of `features` about the chosen ones, and columns of `profile` beside them; no lists."""
    table = store.scan_features(site)
    if store.has_table(site, "profile"):
        table = table.join(store.scan_table(site, "profile"), on="feature", how="left", suffix="_profile")
    flat = [name for name, dtype in table.collect_schema().items() if not dtype.is_nested()]
    wanted = pl.DataFrame({"feature": chosen}).lazy()
    return wanted.join(table.select(flat), on="feature", how="left", maintain_order="left").collect()


def _obs_of_rows(store: FeatureStore, record: Any, tokens: TokenShard) -> pl.DataFrame:
    """Where each row of a shard stands, its token, and the labels of its segment."""
    index = ContextIndex(store.layout, store.lake, [record])
    rows = np.arange(record.row_start, record.row_start + record.rows, dtype=np.uint64)
    frame = index.describe(rows, [name for name in index.columns if name != "context"])
    own = {
        "row": rows,
        "context": tokens.context_of_row().astype(np.uint64),
        "token_id": tokens.token_ids.astype(np.int32),
        "counted": tokens.counted,
    }
    return pl.DataFrame(own).hstack(frame).with_columns(pl.col("document_offset").cast(pl.Int64))


def _pooled(
    store: FeatureStore, record: Any, tokens: TokenShard, matrix: sparse.csr_matrix, rows: Rows, pool: Pool
) -> tuple[sparse.csr_matrix, pl.DataFrame]:
    """A row for each context, or document, of the shard, in order."""
    owner = tokens.context_of_row() if rows == "context" else tokens.document.astype(np.int64)
    numbers, group = np.unique(owner, return_inverse=True)
    counted = np.bincount(group[tokens.counted], minlength=len(numbers))
    frame = _obs_of_rows(store, record, tokens).with_columns(group=pl.Series(group), owner=pl.Series(owner))
    labels = [name for name in frame.columns if name in _label_columns(store, record)]
    shared = [pl.col(name).first() if rows == "document" else _shared(name) for name in labels]
    obs = frame.group_by("group", maintain_order=True).agg(
        pl.col("owner").first().cast(pl.UInt64).alias(rows),
        pl.col("shard").first(),
        pl.len().cast(pl.Int64).alias("rows"),
        *shared,
    )
    obs = obs.sort("group").drop("group").with_columns(counted_rows=pl.Series(counted))
    return pool_rows(matrix, group, len(numbers), counted, pool), obs


def _label_columns(store: FeatureStore, record: Any) -> list[str]:
    known = ContextIndex(store.layout, store.lake, [record]).columns
    return [
        name for name in known if name not in ("shard", "context", "position", "document", "document_offset")
    ]


def _shared(name: str) -> pl.Expr:
    """The label that all rows share, null where they differ."""
    return pl.when(pl.col(name).n_unique() == 1).then(pl.col(name).first()).otherwise(None).alias(name)


def pool_rows(matrix: sparse.csr_matrix, group: I64, n: int, counted: I64, pool: Pool) -> sparse.csr_matrix:
    """Pool the rows of a matrix [N, F] by their `group` int64 [N]: float32 [n, F]."""
    found = matrix.tocoo()
    key = group[found.row] * matrix.shape[1] + found.col
    order = np.argsort(key, kind="stable")
    key, value = key[order], found.data[order].astype(np.float64)
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    if pool == "max":
        low, high = (f.reduceat(value, starts) if len(starts) else value for f in (np.minimum, np.maximum))
        pooled = np.where(-low > high, low, high)
    else:
        pooled = np.add.reduceat(value, starts) if len(starts) else value
    row, column = np.divmod(key[starts], matrix.shape[1])
    if pool == "mean_all":
        pooled = pooled / counted[row]
    parts = (pooled.astype(np.float32), (row, column))
    return sparse.csr_matrix(parts, shape=(n, matrix.shape[1]))


class _Target:
    """The group that is written: arrays grow with every shard."""

    def __init__(self, group: Any, n_features: int) -> None:
        self._group, self._n_features, self.n_rows, self._nnz = group, n_features, 0, 0
        _mark(group, "anndata", "0.1.0")
        x = group.create_group("X")
        _mark(x, "csr_matrix", "0.1.0")
        self._x = {
            name: _array(x, name, dtype)
            for name, dtype in (("data", "f4"), ("indices", "i4"), ("indptr", "i8"))
        }
        _append(self._x["indptr"], np.zeros(1, np.int64))
        self._obs: _Frame | None = None

    def add(self, matrix: sparse.csr_matrix, obs: pl.DataFrame) -> None:
        """Add rows."""
        matrix.sort_indices()
        _append(self._x["data"], matrix.data.astype(np.float32))
        _append(self._x["indices"], matrix.indices.astype(np.int32))
        _append(self._x["indptr"], matrix.indptr[1:].astype(np.int64) + self._nnz)
        self._nnz += matrix.nnz
        if self._obs is None:
            known = {
                "row",
                "context",
                "document",
                "position",
                "token_id",
                "counted",
                "shard",
                "rows",
                "counted_rows",
            }
            self._obs = _Frame(self._group, "obs", obs.schema, set(obs.columns) - known)
        self._obs.add(obs, np.arange(self.n_rows, self.n_rows + len(obs)))
        self.n_rows += matrix.shape[0]

    def finish(self, var: pl.DataFrame, uns: dict[str, str]) -> None:
        """Write what is known at the end."""
        self._group["X"].attrs["shape"] = [self.n_rows, self._n_features]
        (self._obs or _Frame(self._group, "obs", pl.Schema(), set())).finish()
        features = _Frame(
            self._group, "var", var.schema, {name for name in var.columns if var[name].null_count()}
        )
        features.add(var, var["feature"].to_numpy())
        features.finish()
        for name in ("layers", "obsm", "obsp", "varm", "varp", "uns"):
            _mark(self._group.create_group(name), "dict", "0.1.0")
        for name, text in {"made_by": "latentlake", **uns}.items():
            array = self._group["uns"].create_array(name, shape=(), dtype=str)
            array[...] = text
            _mark(array, "string", "0.2.0")


class _Frame:
    """A data frame that grows; its index is the text of a number."""

    def __init__(self, group: Any, name: str, schema: pl.Schema, nullable: set[str]) -> None:
        self._group = group.create_group(name)
        _mark(self._group, "dataframe", "0.2.0")
        self._columns = {
            column: _column(dtype, column in nullable)(self._group, column)
            for column, dtype in schema.items()
        }
        self._group.attrs.update({"_index": "_index", "column-order": list(schema)})
        self._index = _texts(self._group, "_index")

    def add(self, frame: pl.DataFrame, index: NDArray[Any]) -> None:
        _append(self._index, index.astype(str).astype(object))
        for name, column in self._columns.items():
            column.add(frame[name])

    def finish(self) -> None:
        for column in self._columns.values():
            column.finish()


class _Numbers:
    """Numbers without nulls: an array; float's nulls are NaN."""

    def __init__(self, group: Any, name: str) -> None:
        self._group, self._name, self._array = group, name, None

    def add(self, values: pl.Series) -> None:
        found = (
            values.to_numpy() if values.dtype != pl.Boolean else values.cast(pl.UInt8).to_numpy().astype(bool)
        )
        if self._array is None:
            self._array = _array(self._group, self._name, found.dtype)
            _mark(self._array, "array", "0.2.0")
        _append(self._array, found)

    def finish(self) -> None:
        return


class _Nullable:
    """Whole numbers or booleans that may be null: values and a mask."""

    def __init__(self, group: Any, name: str) -> None:
        self._group, self._values, self._mask = group.create_group(name), None, None

    def add(self, values: pl.Series) -> None:
        kind = values.dtype == pl.Boolean
        found = (
            values.fill_null(0).to_numpy()
            if not kind
            else values.fill_null(value=False).to_numpy().astype(bool)
        )
        if self._values is None:
            _mark(self._group, "nullable-boolean" if kind else "nullable-integer", "0.1.0")
            self._values, self._mask = (
                _array(self._group, n, d) for n, d in (("values", found.dtype), ("mask", "bool"))
            )
            for array in (self._values, self._mask):
                _mark(array, "array", "0.2.0")
        _append(self._values, found)
        _append(self._mask, values.is_null().to_numpy().astype(bool))

    def finish(self) -> None:
        return


class _Categories:
    """Text: a code for each row, -1 for null, and every text once, which are kept in memory."""

    def __init__(self, group: Any, name: str) -> None:
        self._group = group.create_group(name)
        _mark(self._group, "categorical", "0.2.0")
        self._group.attrs["ordered"] = False
        self._codes = _array(self._group, "codes", "i4")
        _mark(self._codes, "array", "0.2.0")
        self._known: dict[str, int] = {}

    def add(self, values: pl.Series) -> None:
        for text in values.drop_nulls().unique(maintain_order=True).to_list():
            self._known.setdefault(text, len(self._known))
        codes = values.replace_strict(self._known, default=-1, return_dtype=pl.Int32) if self._known else None
        _append(self._codes, np.full(len(values), -1, np.int32) if codes is None else codes.to_numpy())

    def finish(self) -> None:
        array = _texts(self._group, "categories")
        _append(array, np.array(list(self._known), object))


def _column(dtype: pl.DataType, nullable: bool) -> Callable[[Any, str], Any]:
    """What keeps a column."""
    if dtype == pl.String:
        return _Categories
    return _Nullable if nullable and not dtype.is_float() else _Numbers


def _mark(node: Any, encoding: str, version: str) -> None:
    node.attrs.update({"encoding-type": encoding, "encoding-version": version})


def _array(group: Any, name: str, dtype: Any) -> Any:
    codec = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=np.dtype(dtype).itemsize)
    return group.create_array(name, shape=(0,), dtype=dtype, chunks=(_CHUNK,), compressors=codec)


def _texts(group: Any, name: str) -> Any:
    array = group.create_array(name, shape=(0,), dtype=str, chunks=(_TEXT_CHUNK,))
    _mark(array, "string-array", "0.2.0")
    return array


def _append(array: Any, values: NDArray[Any]) -> None:
    if len(values):
        n = array.shape[0]
        array.resize((n + len(values),))
        array[n:] = values
