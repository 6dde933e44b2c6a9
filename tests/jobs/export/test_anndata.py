"""AnnData reads what is exported, whole and lazily, with the store's values and labels."""

from __future__ import annotations

import anndata
import numpy as np
import polars as pl
import pytest
import zarr
from scipy import sparse

from jobs.cli import main
from jobs.export import anndata_zarr
from jobs.export.anndata_zarr import export
from pipeline.store.formats.csr import index_dtype
from schemas.run.file import parse_run_file
from tests.fixtures.exports import built_store
from tests.fixtures.runs import PARTIES, extracted, run_content
from tests.fixtures.store import D_SAE


def run(arguments, code=0):
    with pytest.raises(SystemExit) as end:
        main(["export", "anndata", *arguments])
    assert end.value.code == code


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return built_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """The group that an export of all rows and features gave."""
    out = tmp_path_factory.mktemp("out")
    exported(made, out)
    return out / "out" / "site.zarr"


def exported(made, tmp_path, *options):
    run([str(made[0].layout.root), "--out", str(tmp_path / "out"), *options])
    return anndata.read_zarr(tmp_path / "out" / "site.zarr")


def same(column, expected):
    """A pandas column and a list, nulls included."""
    return column.astype(object).where(column.notna(), None).tolist() == expected


def test_rows_by_features_are_the_stored_values_and_obs_says_where_they_stand(made, whole):
    built, _ = made
    data = anndata.read_zarr(whole)
    assert isinstance(data.X, sparse.csr_matrix)
    np.testing.assert_array_equal(data.X.toarray(), built.dense["site"])
    assert data.X.has_sorted_indices
    for name in ("row", "context", "position", "document"):
        assert data.obs[name].tolist() == built.tokens[name].to_list()
    assert data.obs["token_id"].tolist() == built.tokens["token"].to_list()
    assert data.obs["counted"].tolist() == (built.tokens["token"] != 0).to_list()
    for name in ("document_offset", "year", "party"):
        assert same(data.obs[name], built.tokens[name].to_list()), name
    assert data.obs_names.tolist() == [str(row) for row in range(data.n_obs)]
    assert data.uns["site"] == "site"


def test_scipy_and_scikit_learn_compute_with_x(made, whole):
    from sklearn.decomposition import TruncatedSVD

    x, dense = anndata.read_zarr(whole).X, made[0].dense["site"]
    assert x.indptr.dtype == x.indices.dtype == np.int32
    np.testing.assert_array_equal(np.transpose(x.nonzero()), np.argwhere(dense))
    np.testing.assert_array_equal(x.tocoo().toarray(), dense)
    largest = TruncatedSVD(2, algorithm="arpack", random_state=0).fit(x).singular_values_
    np.testing.assert_allclose(largest, np.linalg.svd(dense.astype(np.float64))[1][:2], rtol=1e-4)


def test_more_activations_than_int32_counts_make_both_indices_wide():
    assert (index_dtype(2**31 - 1), index_dtype(2**31)) == (np.int32, np.int64)


def test_var_is_the_feature_table(made, whole):
    _, store = made
    data = anndata.read_zarr(whole)
    table = store.scan_features("site").collect()
    assert data.var_names.tolist() == [str(feature) for feature in range(D_SAE)]
    flat = [name for name, dtype in table.schema.items() if not dtype.is_nested()]
    assert list(data.var.columns) == flat
    for name in flat:
        assert same(data.var[name], table[name].to_list()), name


def test_it_opens_lazily(made, whole):
    built, _ = made
    group = zarr.open_group(whole, mode="r")
    lazy = anndata.io.sparse_dataset(group["X"])
    assert lazy.shape == built.dense["site"].shape
    np.testing.assert_array_equal(lazy[5:9].toarray(), built.dense["site"][5:9])


@pytest.mark.slow
def test_chosen_features_are_the_columns_and_postings_and_small_chunks_do(tmp_path, monkeypatch):
    monkeypatch.setattr(anndata_zarr, "_CHUNK", 32)
    monkeypatch.setattr(anndata_zarr, "_TEXT_CHUNK", 8)
    built, _ = made = built_store(tmp_path / "store", layouts=("feature_major",))
    data = exported(made, tmp_path, "--features", "31,2:5")
    np.testing.assert_array_equal(data.X.toarray(), built.dense["site"][:, [2, 3, 4, 31]])
    assert data.var["feature"].tolist() == [2, 3, 4, 31]
    assert data.obs["row"].tolist() == built.tokens["row"].to_list()
    assert same(data.obs["party"], built.tokens["party"].to_list())
    assert data.obs_names[-1] == str(data.n_obs - 1)


@pytest.mark.parametrize("rows", ["token", "document"])
def test_labels_that_are_called_as_columns_of_obs_stand_next_to_them(tmp_path, rows):
    content = run_content(tmp_path)
    corpus = tmp_path / "corpus.parquet"
    frame = pl.read_parquet(corpus).with_columns(token_id=pl.lit("a"), group=pl.lit("g"))
    frame.rename({"party": "rows"}).write_parquet(corpus)
    content["corpus"]["label_columns"] = ["rows", "token_id", "group"]
    store = extracted(parse_run_file(content, "run.yaml"))
    export(store, "mid", np.arange(64, dtype=np.uint32), tmp_path, rows=rows, pool="sum")
    obs = anndata.read_zarr(tmp_path / "mid.zarr").obs
    assert set(obs["rows_label"]) == set(PARTIES)
    assert set(obs["token_id_label"]) == {"a"}
    assert set(obs["group"]) == {"g"}
    if rows == "document":
        assert obs["rows"].sum() == store.totals("mid").rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "pool"),
    [
        ("context", "mean_all"),
        ("document", "sum"),
        ("document", "mean_all"),
        ("context", "max"),
        ("context", "last"),
    ],
)
def test_pooled_rows_are_those_of_contexts_or_documents(made, tmp_path, rows, pool):
    built, _ = made
    data = exported(made, tmp_path, "--rows", rows, "--pool", pool)
    for place, (number,) in enumerate(built.tokens.select(rows).unique().sort(rows).iter_rows()):
        own = built.tokens.filter(pl.col(rows) == number)
        dense = built.dense["site"][own["row"].to_numpy()].astype(np.float64)
        counted = int((own["token"] != 0).sum())
        if pool == "max":
            strongest = np.abs(dense).argmax(axis=0)
            expected = dense[strongest, np.arange(D_SAE)]
            np.testing.assert_array_equal(np.abs(data.X[place].toarray()[0]), np.abs(expected))
        elif pool == "last":
            last = dense[np.flatnonzero(own["token"].to_numpy())[-1]]
            np.testing.assert_array_equal(data.X[place].toarray()[0], last)
        else:
            expected = dense.sum(axis=0) / (counted if pool == "mean_all" else 1)
            np.testing.assert_allclose(data.X[place].toarray()[0], expected, rtol=1e-6, atol=1e-12)
        assert data.obs[rows].iloc[place] == number
        assert data.obs["rows"].iloc[place] == own.height
        assert data.obs["counted_rows"].iloc[place] == counted
        years = own["year"].unique().to_list()
        if len(years) == 1:
            assert data.obs["year"].iloc[place] == years[0]
        else:
            assert same(data.obs["year"].iloc[place : place + 1], [None])
    assert data.n_obs == built.tokens[rows].n_unique()


def test_wrong_rows_and_pools_are_refused(made, tmp_path, capsys):
    root = str(made[0].layout.root)
    run([root, "--out", str(tmp_path / "o"), "--rows", "word"], 2)
    assert "--rows 'word' is not one of token, context, document" in capsys.readouterr().err
    run([root, "--out", str(tmp_path / "o"), "--pool", "mean"], 2)
    assert "--pool 'mean' is not one of sum, mean_all, max, last" in capsys.readouterr().err
