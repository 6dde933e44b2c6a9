"""AnnData: <site>.zarr, X a CSR matrix of rows, contexts or documents by features.

Written as anndata 0.12 specifies its files (docs/fileformat-prose.md; encodings anndata 0.1.0, csr_matrix
0.1.0, dataframe 0.2.0, categorical 0.2.0, nullable-integer 0.1.0, string-array 0.2.0, array 0.2.0; Zarr 3),
shard by shard, so without anndata itself and with one shard's activations in memory. `obs` holds each row's
place and labels; `var` is the feature table (and `profile`, where there is one) without lists.
Cost: one reading of the CSR; pooling sorts a shard's activations.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import polars as pl
import typer
import zarr
from numpy.typing import NDArray
from scipy import sparse
from zarr.codecs import BloscCodec

from jobs.export.folder import Features, Out, exporting
from jobs.terminal.progress import counting
from pipeline.statistics.pooling import pool_rows
from pipeline.store import FeatureStore
from pipeline.store.formats.csr import index_dtype
from pipeline.store.reading.contexts import COLUMNS, ContextIndex
from schemas.errors import InputError
from schemas.records import ShardRecord
from schemas.values import U32, TokenShard

Rows = Literal["token", "context", "document"]
Pool = Literal["sum", "mean_all", "max", "last"]

_CHUNK, _TEXT_CHUNK = 1 << 19, 1 << 16
"""Elements of a chunk of numbers, and of texts; of each column so many wait in memory."""


def command(
    store: FeatureStore,
    sites: list[str],
    out: Out,
    features: Features = "all",
    rows: Annotated[
        str, typer.Option(help="What a row of X stands for: a token, a context or a document.")
    ] = "token",
    pool: Annotated[
        str,
        typer.Option(
            help="How a context or document is pooled: sum, mean_all (zeros included), max (the strongest) "
            "or last (row)."
        ),
    ] = "sum",
) -> None:
    """Export the chosen features of the sites, a folder <site>.zarr for each."""
    for option, value, known in (("--rows", rows, get_args(Rows)), ("--pool", pool, get_args(Pool))):
        if value not in known:
            raise InputError(f"{option} {value!r} is not one of {', '.join(known)}")
    with exporting(store, sites, out, "anndata", features) as new:
        for site, chosen in new.chosen.items():
            n = export(store, site, chosen, new.folder, rows=rows, pool=pool)  # type: ignore[arg-type]
            new.reports[site] = f"{n:,} {rows}s x {len(chosen):,} features as {site}.zarr"


def export(store: FeatureStore, site: str, chosen: U32, out: Path, *, rows: Rows, pool: Pool) -> int:
    """Write out/<site>.zarr; how many rows it has.

    `rows` token: every row of the lake whose shard is committed, whether counted or not. context, document:
    each one's activations pooled by `pool`, over its counted rows: their `sum`, their mean with zeros
    (`mean_all`), the strongest, with its sign (`max`), or those of the last row (`last`); sums are taken in
    float64. A document of which a context holds only a part has its own rows alone.
    """
    shards = store.shard_files(site)
    n_rows = sum(_units(shard.record, rows) for shard in shards)
    nnz = sum(receipt.nnz for receipt in store.site_receipts(site).values())
    group = zarr.open_group(out / f"{site}.zarr", mode="w-", zarr_format=3, attributes=_encoding("anndata"))
    target = _Target(group, n_rows, len(chosen), nnz)
    with counting(f"export anndata {site}", sum(shard.record.rows for shard in shards), "rows") as advance:
        for shard in shards:
            tokens = store.token_shard(site, shard.record.name, inputs=False)
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


def _units(record: ShardRecord, rows: Rows) -> int:
    """Rows that a shard gives, if each of its documents has a token."""
    return {"token": record.rows, "context": record.contexts, "document": record.documents}[rows]


def feature_table(store: FeatureStore, site: str, chosen: U32) -> pl.DataFrame:
    """The rows of `features` about the chosen ones, and columns of `profile`; no lists."""
    table = store.scan_features(site)
    if store.has_table(site, "profile"):
        table = table.join(store.scan_table(site, "profile"), on="feature", how="left", suffix="_profile")
    flat = [name for name, dtype in table.collect_schema().items() if not dtype.is_nested()]
    wanted = pl.DataFrame({"feature": chosen}).lazy()
    return wanted.join(table.select(flat), on="feature", how="left", maintain_order="left").collect()


def _obs_of_rows(store: FeatureStore, record: ShardRecord, tokens: TokenShard) -> pl.DataFrame:
    """Where each row of a shard stands, its token, and the labels of its segment."""
    index = ContextIndex(store.layout, store.lake, [record])
    rows = np.arange(record.row_start, record.row_start + record.rows, dtype=np.uint64)
    frame = index.describe(rows, [name for name in index.columns if name != "context"])
    frame = frame.rename({name: _label(name) for name in frame.columns if name not in COLUMNS})
    own = {
        "row": rows,
        "context": tokens.context_of_row().astype(np.uint64),
        "token_id": tokens.token_ids.astype(np.int32),
        "counted": tokens.counted,
    }
    return pl.DataFrame(own).hstack(frame).with_columns(pl.col("document_offset").cast(pl.Int64))


def _pooled(
    store: FeatureStore,
    record: ShardRecord,
    tokens: TokenShard,
    matrix: sparse.csr_matrix,
    rows: Rows,
    pool: Pool,
) -> tuple[sparse.csr_matrix, pl.DataFrame]:
    """A row for each context, or document, of the shard, in order."""
    owner = tokens.context_of_row() if rows == "context" else tokens.document.astype(np.int64)
    numbers, group = np.unique(owner, return_inverse=True)
    counted = np.bincount(group[tokens.counted], minlength=len(numbers))
    frame = _obs_of_rows(store, record, tokens).with_columns(_group=pl.Series(group), _owner=pl.Series(owner))
    known = ContextIndex(store.layout, store.lake, [record]).columns
    labels = [pl.col(_label(name)) for name in known if name not in COLUMNS]
    if rows == "document":
        shared = [label.first() for label in labels]
    else:  # null where the documents of a context differ
        shared = [pl.when(label.n_unique() == 1).then(label.first()) for label in labels]
    obs = frame.group_by("_group", maintain_order=True).agg(
        pl.col("_owner").first().cast(pl.UInt64).alias(rows),
        pl.col("shard").first(),
        pl.len().cast(pl.Int64).alias("rows"),
        *shared,
    )
    obs = obs.sort("_group").drop("_group").with_columns(counted_rows=pl.Series(counted))
    pooling, kept = "mean" if pool == "mean_all" else pool, tokens.counted
    return pool_rows(matrix[kept], group[kept], len(numbers), pooling, counted), obs


def _label(name: str) -> str:
    """A label's column in obs: one that is called as a column of obs ends with _label."""
    return f"{name}_label" if name in _NEVER_NULL else name


class _Target:
    """The group that is written."""

    def __init__(self, group: Any, n_rows: int, n_features: int, nnz: int) -> None:
        self._group, self._n_features, self.n_rows, self._nnz = group, n_features, 0, 0
        self._expected = n_rows
        self._x = group.create_group("X", attributes=_encoding("csr_matrix"))
        self._data = _Array(self._x, "data", np.dtype(np.float32), nnz)
        self._index = index_dtype(nnz)
        self._indices = _Array(self._x, "indices", self._index, nnz)
        self._indptr = _Array(self._x, "indptr", self._index, n_rows + 1)
        self._indptr.add(np.zeros(1, self._index))
        self._obs: _Frame | None = None

    def add(self, matrix: sparse.csr_matrix, obs: pl.DataFrame) -> None:
        """Add rows."""
        matrix.sort_indices()
        self._data.add(matrix.data.astype(np.float32))
        self._indices.add(matrix.indices.astype(self._index))
        # a shard's pointers count from its first activation, those of the whole from the first of all
        self._indptr.add((matrix.indptr[1:].astype(np.int64) + self._nnz).astype(self._index))
        self._nnz += matrix.nnz
        if self._obs is None:
            nullable = set(obs.columns) - _NEVER_NULL
            self._obs = _Frame(self._group, "obs", obs.schema, nullable, self._expected)
        self._obs.add(obs, np.arange(self.n_rows, self.n_rows + len(obs)))
        self.n_rows += matrix.shape[0]

    def finish(self, var: pl.DataFrame, uns: dict[str, str]) -> None:
        """Write what is known at the end."""
        for array in (self._data, self._indices, self._indptr):
            array.finish()
        self._x.attrs["shape"] = [self.n_rows, self._n_features]
        assert self._obs is not None, "a site has a shard"
        self._obs.finish()
        nullable = {name for name in var.columns if var[name].null_count()}
        features = _Frame(self._group, "var", var.schema, nullable, len(var))
        features.add(var, var["feature"].to_numpy())
        features.finish()
        for name in ("layers", "obsm", "obsp", "varm", "varp", "uns"):
            self._group.create_group(name, attributes=_encoding("dict"))
        uns_group = self._group["uns"]
        for name, text in {"made_by": "latentlake", **uns}.items():
            array = uns_group.create_array(name, shape=(), dtype=str, attributes=_encoding("string"))
            array[...] = text


_NEVER_NULL = {
    "row", "context", "document", "position", "token_id", "counted", "shard", "rows", "counted_rows",
}  # fmt: skip
"""Columns of obs besides the labels that always have a value."""


class _Frame:
    """A data frame that is written in pieces; its index is the text of a number."""

    def __init__(self, group: Any, name: str, schema: pl.Schema, nullable: set[str], n: int) -> None:
        order = {"_index": "_index", "column-order": list(schema)}
        own = group.create_group(name, attributes=_encoding("dataframe") | order)
        self._columns = {
            column: _kind(dtype, column in nullable)(own, column, dtype, n)
            for column, dtype in schema.items()
        }
        self._index = _Array(own, "_index", None, n, "string-array")

    def add(self, frame: pl.DataFrame, index: NDArray[Any]) -> None:
        self._index.add(index.astype(str).astype(object))
        for name, column in self._columns.items():
            column.add(frame[name])

    def finish(self) -> None:
        for column in (self._index, *self._columns.values()):
            column.finish()


def _kind(dtype: pl.DataType, nullable: bool) -> Callable[..., Any]:
    """What keeps a column; of floats nulls are NaN."""
    if dtype == pl.String:
        return _Categories
    return _Nullable if nullable and not dtype.is_float() else _Values


class _Array:
    """One array of a group, made for `n` elements, which is cut, or grows, to those that are added.

    What is added waits until it fills chunks, so that each of them is written once.
    """

    def __init__(self, group: Any, name: str, dtype: Any, n: int, encoding: str | None = None) -> None:
        self._chunk = min(max(n, 1), _TEXT_CHUNK if dtype is None else _CHUNK)
        options: dict[str, Any] = {"dtype": str}
        if dtype is not None:
            codec = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle", typesize=dtype.itemsize)
            options = {"dtype": dtype, "compressors": codec}
        attributes = _encoding(encoding) if encoding else {}
        self._array = group.create_array(
            name, shape=(n,), chunks=(self._chunk,), attributes=attributes, **options
        )
        self._n = 0
        self._waiting: list[NDArray[Any]] = []

    def add(self, values: NDArray[Any]) -> None:
        """Put values after those that are there."""
        self._waiting.append(values)
        if (n := sum(map(len, self._waiting))) >= self._chunk:
            self._write(n // self._chunk * self._chunk)

    def finish(self) -> None:
        """Write what waits; cut what nothing was added to."""
        self._write(sum(map(len, self._waiting)))
        if self._array.shape[0] > self._n:
            self._array.resize((self._n,))

    def _write(self, n: int) -> None:
        """Write the first `n` that wait."""
        if not n:
            return
        values = np.concatenate(self._waiting)
        if self._n + n > self._array.shape[0]:
            self._array.resize((self._n + n,))
        self._array[self._n : self._n + n] = values[:n]
        self._n, self._waiting = self._n + n, [values[n:]] if n < len(values) else []


class _Values(_Array):
    """A column of numbers or booleans without nulls."""

    def __init__(self, group: Any, name: str, dtype: pl.DataType, n: int) -> None:
        super().__init__(group, name, _numpy(dtype), n, "array")

    def add(self, values: Any) -> None:
        super().add(values.to_numpy())


class _Nullable:
    """A column of whole numbers or booleans that may be null: values and a mask."""

    def __init__(self, group: Any, name: str, dtype: pl.DataType, n: int) -> None:
        encoding = "nullable-boolean" if dtype == pl.Boolean else "nullable-integer"
        own = group.create_group(name, attributes=_encoding(encoding))
        self._values = _Array(own, "values", _numpy(dtype), n, "array")
        self._mask = _Array(own, "mask", np.dtype(np.bool_), n, "array")
        self._fill = pl.lit(0).cast(dtype)

    def add(self, values: pl.Series) -> None:
        self._values.add(values.to_frame().select(pl.first().fill_null(self._fill)).to_series().to_numpy())
        self._mask.add(values.is_null().to_numpy())

    def finish(self) -> None:
        self._values.finish()
        self._mask.finish()


class _Categories:
    """A column of texts: a code for each row, -1 for null, and every text once; these are kept in memory."""

    def __init__(self, group: Any, name: str, dtype: pl.DataType, n: int) -> None:  # noqa: ARG002
        self._group = group.create_group(name, attributes=_encoding("categorical") | {"ordered": False})
        self._codes = _Array(self._group, "codes", np.dtype(np.int32), n, "array")
        self._known: dict[str, int] = {}

    def add(self, values: pl.Series) -> None:
        for text in values.drop_nulls().unique(maintain_order=True).to_list():
            self._known.setdefault(text, len(self._known))
        schema = {"text": pl.String(), "code": pl.Int32()}
        known = pl.DataFrame({"text": list(self._known), "code": list(self._known.values())}, schema=schema)
        codes = values.rename("text").to_frame().join(known, on="text", how="left", maintain_order="left")
        self._codes.add(codes["code"].fill_null(-1).to_numpy())

    def finish(self) -> None:
        self._codes.finish()
        texts = _Array(self._group, "categories", None, len(self._known), "string-array")
        texts.add(np.array(list(self._known), object))


_VERSIONS = {
    "anndata": "0.1.0", "csr_matrix": "0.1.0", "dict": "0.1.0", "nullable-integer": "0.1.0",
    "nullable-boolean": "0.1.0",
}  # fmt: skip
"""Of encodings; the others' is 0.2.0."""


def _encoding(name: str) -> dict[str, Any]:
    return {"encoding-type": name, "encoding-version": _VERSIONS.get(name, "0.2.0")}


def _numpy(dtype: pl.DataType) -> np.dtype[Any]:
    converted: np.dtype[Any] = pl.Series([], dtype=dtype).to_numpy().dtype
    return converted
