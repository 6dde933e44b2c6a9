"""Every file of a store is read, and gives the same values, without our code: Parquet, Zarr, AnnData."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from polars.testing import assert_frame_equal

from jobs.lake.compact import compact
from jobs.tables.cluster import cluster
from jobs.tables.coactivation import coactivation
from jobs.tables.profile import profile
from jobs.tables.rank import rank
from pipeline.store import FeatureStore
from pipeline.store.formats.parquet import open_parquet, write_postings
from pipeline.tasks import OneProcess
from schemas.run.file import Cluster
from schemas.values import Postings
from tests.fixtures.runs import extracted, run_content, run_file
from tests.fixtures.store import D_SAE
from tests.kit import write_sae

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Every kind of data object, with float16 and float32, and the tables of several jobs."""
    folder = tmp_path_factory.mktemp("readers")
    content = run_content(folder)
    signed = write_sae(folder / "signed", "abstopk", d_sae=64, hook_name="layers.0", k=4)
    content["sites"][0]["control"] = "random_encoder"
    content["sites"].append({"name": "signed", "sae": str(signed), "positions": [2, None]})
    content["sites"].append({"name": "x", "hook_name": "layers.2"})
    layouts = {"layouts": ["token_major", "feature_major", "dense"]}
    store = extracted(run_file(folder, sites=content["sites"], store=layouts))
    for job in (coactivation, partial(cluster, config=Cluster()), rank, profile):
        job(store, "mid")
    compact(store, "mid", OneProcess())
    return FeatureStore.open(store.layout.root)


def of_duckdb(path: Path) -> pl.DataFrame:
    import duckdb

    with duckdb.connect() as connection:
        result = connection.sql("select * from read_parquet(?)", params=[str(path)]).to_arrow_table()
    return _frame(pl.from_arrow(result))


def of_datafusion(path: Path) -> pl.DataFrame:
    import datafusion

    result = datafusion.SessionContext().read_parquet(str(path)).to_arrow_table()
    return _frame(pl.from_arrow(result))


def of_pandas(path: Path) -> pl.DataFrame:
    return _frame(pl.from_arrow(pa.table(pd.read_parquet(path, dtype_backend="pyarrow"))))


def of_pyarrow(path: Path) -> pl.DataFrame:
    return _frame(pl.from_arrow(pq.read_table(path)))


def _frame(result: Any) -> pl.DataFrame:
    assert isinstance(result, pl.DataFrame)
    return result


READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    "duckdb": of_duckdb,
    "datafusion": of_datafusion,
    "pandas": of_pandas,
    "pyarrow": of_pyarrow,
}


@pytest.mark.parametrize("reader", READERS)
def test_every_parquet_file_gives_the_same_values(store: FeatureStore, reader: str) -> None:
    files = sorted(Path(str(store.layout.root)).rglob("*.parquet"))
    kinds = {path.name for path in files}
    assert {"postings.parquet", "partials.parquet", "control.parquet", "manifest.parquet"} <= kinds
    assert {
        "features.parquet",
        "neighbours.parquet",
        "feature_clusters.parquet",
        "rankings.parquet",
        "vocabulary.parquet",
    } <= kinds
    for path in files:
        expected, result = pl.read_parquet(path), READERS[reader](path)
        assert result.columns == expected.columns, path
        # types that a reader has not (float16, fixed lists) come as the next larger one
        assert_frame_equal(result.cast(dict(expected.schema)), expected, check_exact=True)


def test_every_zarr_array_gives_the_same_values(store: FeatureStore) -> None:
    import tensorstore

    root, arrays = Path(str(store.layout.root)), 0
    for metadata in root.rglob("zarr.json"):
        if '"array"' not in metadata.read_text():
            continue
        expected = zarr.open_array(metadata.parent, mode="r")[...]
        kind = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(metadata.parent)}}
        np.testing.assert_array_equal(tensorstore.open(kind, open=True).result().read().result(), expected)
        arrays += 1
    assert arrays > 20


def test_anndata_reads_every_csr(store: FeatureStore) -> None:
    for site in ("mid", "signed"):
        for record in store.committed(site):
            group = zarr.open_group(store.object_path(site, record.name, "csr.zarr"), mode="r")
            result, expected = anndata.io.read_elem(group), store.csr(site, record.name)
            assert result.shape == expected.shape
            assert (result != expected).nnz == 0


def _postings(nnz: int) -> Postings:
    """Like those of a shard: features by Zipf's law, values of some thousand bits."""
    rng = np.random.default_rng(0)
    feature = np.sort(np.minimum(rng.zipf(1.3, nnz) - 1, D_SAE - 1)).astype(np.uint32)
    starts = np.flatnonzero(np.diff(feature, prepend=feature[:1] + np.uint32(1)))
    rows = np.arange(nnz, dtype=np.int64)
    values = np.abs(rng.normal(2, 1, nnz)).astype(np.float16).astype(np.float32)
    return Postings(feature[starts], np.append(starts, nnz), rows, values)


@pytest.mark.parametrize(
    ("version", "dtype", "encoding"),
    [
        (6, "float16", "BYTE_STREAM_SPLIT"),
        (7, "float16", "PLAIN"),
        (6, "float32", "BYTE_STREAM_SPLIT"),
        (7, "float32", "BYTE_STREAM_SPLIT"),
    ],
)
def test_a_pass_keeps_the_encoding_of_its_version(
    tmp_path: Path, version: int, dtype: str, encoding: str
) -> None:
    path = tmp_path / "postings.parquet"
    options = {"row_start": 0, "activation_dtype": dtype, "feature_block": 16}
    write_postings(path, _postings(1000), format_version=version, **options)
    with open_parquet(path) as file:
        encodings = {file.metadata.row_group(0).column(n).encodings for n in (2,)}
    assert all(encoding in result for result in encodings)
    assert pl.read_parquet(path)["activation"].dtype == (pl.Float16 if dtype == "float16" else pl.Float32)


def test_plain_float16_takes_no_more_room(tmp_path: Path) -> None:
    sizes = {}
    for version in (6, 7):
        path, options = tmp_path / f"{version}.parquet", {"activation_dtype": "float16", "feature_block": 16}
        write_postings(path, _postings(100_000), row_start=0, format_version=version, **options)
        sizes[version] = path.stat().st_size
    assert sizes[7] < 1.03 * sizes[6]
