"""AnnData, SciPy, PyArrow and Polars read what is written without our code; equal input gives equal bytes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import anndata
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import zarr

from pipeline.store.formats.transposition import round_activations, to_postings
from pipeline.store.objects.verbs import measure
from pipeline.store.writer import write_site
from schemas.errors import InputError
from schemas.records import DataObject
from schemas.tables.tables import ROW_COUNTS, postings_schema
from schemas.values import SparseFeatures
from tests.fixtures.store import D_SAE, planned_site, random_features, to_dense

ROW_START = 2**33


def write(
    attempt: Path, features: SparseFeatures, dtype: str = "float16", **options: object
) -> list[DataObject]:
    given = {
        "partials": lambda: pl.DataFrame({"feature": [1], "bins": [[1, 2]]}),
        "row_counts": pl.DataFrame({"l0": [1], "rows": [2]}, schema=ROW_COUNTS),
        "row_start": ROW_START,
        "layouts": ("token_major", "feature_major"),
        "activation_dtype": dtype,
    }
    return write_site(attempt, planned_site(), features, to_postings(features, D_SAE), **(given | options))


@pytest.fixture
def features() -> SparseFeatures:
    rng = np.random.default_rng(1)
    return round_activations(random_features(rng, rng.random(50) < 0.8), "float16")[0]


def test_anndata_reads_the_csr_as_the_same_scipy_matrix(tmp_path: Path, features: SparseFeatures) -> None:
    write(tmp_path, features)
    group = zarr.open_group(tmp_path / "site" / "csr.zarr", mode="r")
    matrix = anndata.io.read_elem(group)
    assert matrix.dtype == np.float32
    assert np.array_equal(matrix.toarray(), to_dense(features))
    assert np.array_equal(matrix.tocoo().toarray(), to_dense(features))  # refused where types differ
    assert {name: group[name].dtype.name for name in ("indptr", "indices", "data")} == {
        "indptr": "int32",
        "indices": "int32",
        "data": "float32",
    }
    assert dict(group.attrs) == {
        "encoding-type": "csr_matrix",
        "encoding-version": "0.1.0",
        "shape": [50, D_SAE],
    }


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_plain_polars_reads_the_postings_sorted_with_lake_wide_rows(
    tmp_path: Path, features: SparseFeatures, dtype: str
) -> None:
    write(tmp_path, features, dtype)
    frame = pl.read_parquet(tmp_path / "site" / "postings.parquet")
    assert frame.schema == postings_schema(dtype)
    dense = to_dense(features)
    feature, row = np.nonzero(dense.T)
    assert frame["feature"].to_list() == feature.tolist()
    assert frame["row"].to_list() == (row + ROW_START).tolist()
    assert frame["activation"].cast(pl.Float32).to_list() == dense[row, feature].tolist()


def test_row_groups_are_feature_blocks_and_empty_blocks_have_none(tmp_path: Path) -> None:
    indices = np.array([1, 3, 17, 39, 2], dtype=np.int32)
    write(tmp_path, SparseFeatures(np.array([0, 4, 5]), indices, np.ones(5, np.float32)))
    metadata = pq.read_metadata(tmp_path / "site" / "postings.parquet")
    columns = [metadata.row_group(i).column(0) for i in range(metadata.num_row_groups)]
    assert [(c.statistics.min, c.statistics.max, c.num_values) for c in columns] == [
        (1, 3, 3),
        (17, 17, 1),
        (39, 39, 1),
    ]
    assert "DELTA_BINARY_PACKED" in metadata.row_group(0).column(1).encodings
    assert "PLAIN" in metadata.row_group(0).column(2).encodings


def test_a_shard_in_which_nothing_fires_is_written_and_read(tmp_path: Path) -> None:
    empty = SparseFeatures(np.zeros(8, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
    write(tmp_path, empty)
    matrix = anndata.io.read_elem(zarr.open_group(tmp_path / "site" / "csr.zarr", mode="r"))
    assert (matrix.shape, matrix.nnz) == ((7, D_SAE), 0)
    frame = pl.read_parquet(tmp_path / "site" / "postings.parquet")
    assert (frame.height, frame.schema) == (0, postings_schema("float16"))


def test_equal_input_gives_equal_bytes_and_the_objects_are_measured(
    tmp_path: Path, features: SparseFeatures
) -> None:
    first, second = write(tmp_path / "a", features), write(tmp_path / "b", features)
    assert first == second
    assert [item.path for item in first] == [
        "site/csr.zarr",
        "site/partials.parquet",
        "site/postings.parquet",
        "site/row_counts.parquet",
    ]
    for item in first:
        assert (item.bytes, item.sha256) == measure(tmp_path / "a" / item.path)


@pytest.mark.parametrize(
    ("layout", "left_out"), [("token_major", "postings.parquet"), ("feature_major", "csr.zarr")]
)
def test_only_the_layouts_requested_are_written(
    tmp_path: Path, features: SparseFeatures, layout: str, left_out: str
) -> None:
    names = {item.path.partition("/")[2] for item in write(tmp_path, features, layouts=(layout,))}
    assert len(names) == 3
    assert left_out not in names


def test_a_full_disk_while_writing_data_is_one_sentence(
    tmp_path: Path, features: SparseFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"no space left to write .*site"):
        write(tmp_path, features)
    assert not (tmp_path / "site").exists()


def test_activations_cost_at_most_three_and_a_half_bytes_each_in_each_layout(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n_rows, k, d_sae = 2048, 32, 1024
    weight = np.log(rng.permutation(np.arange(1, d_sae + 1)) ** -0.8)
    score = weight + rng.gumbel(size=(n_rows, d_sae))
    indices = np.sort(np.argpartition(-score, k, axis=1)[:, :k], axis=1).astype(np.int32)
    values = np.exp(rng.normal(0, 0.8, d_sae)[indices] + rng.normal(0, 0.6, indices.shape)).astype(np.float32)
    exact = SparseFeatures(np.arange(0, n_rows * k + 1, k), indices.ravel(), values.ravel())
    features, _, _ = round_activations(exact, "float16")
    site = planned_site(d_sae=d_sae, feature_block=512)
    objects = write_site(
        tmp_path,
        site,
        features,
        to_postings(features, d_sae),
        partials=lambda: pl.DataFrame({"feature": [1]}),
        row_counts=pl.DataFrame(schema=ROW_COUNTS),
        row_start=0,
        layouts=("token_major", "feature_major"),
        activation_dtype="float16",
    )
    size = {item.path: item.bytes / features.nnz for item in objects}
    assert size["site/csr.zarr"] < 3.5
    assert size["site/postings.parquet"] < 3.5
