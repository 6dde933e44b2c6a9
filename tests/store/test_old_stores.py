"""A small store of each format version stays in tests/data and opens for ever (tests/data/make_store.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import zarr

from pipeline.store import FeatureStore
from schemas.layout import CSR, POSTINGS
from schemas.records import FORMAT_VERSION
from schemas.values import Totals

DATA = Path(__file__).parents[1] / "data"

NONZEROS = {
    "store-v1": 4664,
    "store-v2": 7684,
    "store-v3": 7684,
    "store-v4": 7684,
    "store-v5": 8044,
    "store-v6": 8044,
    "store-v7": 8044,
}
FEATURE_3 = {
    "store-v1": (56, 583, 0.195497),
    "store-v2": (63, 655, 0.193021),
    "store-v3": (63, 655, 0.193021),
    "store-v4": (63, 655, 0.193021),
    "store-v5": (63, 655, 0.193021),
    "store-v6": (63, 655, 0.193021),
    "store-v7": (63, 655, 0.193021),
}
STRONGEST = {
    "store-v1": [(553, 35, 2, "Federalist"), (4, 0, 4, "Whig")],
    "store-v2": [(553, 35, 2, "Federalist"), (4, 0, 4, "Whig")],
    "store-v3": [(553, 35, 2, "Federalist"), (4, 0, 4, "Whig")],
    "store-v4": [(553, 35, 2, "Federalist"), (4, 0, 4, "Whig")],
    "store-v5": [(553, 35, 2, "Federalist"), (4, 0, 4, "Whig")],
    "store-v6": [(553, 35, 2, "Federalist"), (4, 0, 4, "Whig")],
    "store-v7": [(553, 35, 2, "Federalist"), (4, 0, 4, "Whig")],
}

CONTROLS = {
    "mid": [
        ("learnt", "random_encoder", 147, 16, 0.222862),
        ("control", "random_encoder", 147, 121, 0.831258),
    ],
    "signed": [
        ("learnt", "shuffled_rows", 138, 4, -0.094613),
        ("control", "shuffled_rows", 138, 20, 0.087029),
    ],
}


@pytest.fixture(scope="module", params=sorted(path.name for path in DATA.glob("store-v*")))
def store(request):
    return FeatureStore.open(DATA / request.param)


def test_every_checksum_and_statistic_still_agrees(store):
    report = store.verify()
    assert (report.problems, report.stale) == ([], [])
    assert report.nonzeros == NONZEROS[store.layout.root.name]


def test_the_feature_table_reads_as_it_did(store):
    columns = ("n_active", "counted_rows", "mean_all")
    row = store.scan_features("mid").filter(feature=3).select(*columns).collect().row(0)
    expected = FEATURE_3[store.layout.root.name]
    assert row[:2] == expected[:2]
    assert row[2] == pytest.approx(expected[2], abs=5e-7)


def test_queries_give_what_they_gave(store):
    result = store.contexts("mid", 3, 2)
    rows = result.select("row", "context", "position", "party").rows()
    assert rows == STRONGEST[store.layout.root.name]
    sites = [name for name, site in store.sites.items() if site.has_sae]
    stored = sum(store.scan_activations(s).select(pl.len()).collect().item() for s in sites)
    assert stored == NONZEROS[store.layout.root.name]


def test_a_site_of_some_positions_and_signed_activations_reads_as_it_did():
    store = FeatureStore.open(DATA / "store-v2")
    assert store.totals("signed").counted_rows == 611
    activations = store.scan_activations("signed").select("activation").collect()["activation"]
    assert ((activations < 0).sum(), (activations > 0).sum()) == (1257, 1187)


def test_there_is_a_store_of_every_version():
    versions = range(1, FORMAT_VERSION + 1)
    assert [store.name for store in sorted(DATA.glob("store-v*"))] == [f"store-v{n}" for n in versions]


@pytest.mark.parametrize("name", ["store-v4", "store-v5", "store-v6", "store-v7"])
def test_controls_read_as_they_did(name):
    store = FeatureStore.open(DATA / name)
    result = {}
    for site in CONTROLS:
        table = store.scan_table(site, "control_features").filter(feature=3)
        columns = ("of", "control", "counted_rows", "n_active", "mean_all")
        result[site] = [(*row[:-1], round(row[-1], 6)) for row in table.select(*columns).collect().rows()]
    assert result == CONTROLS


@pytest.mark.parametrize("name", ["store-v5", "store-v6", "store-v7"])
def test_x_and_means_read_as_they_did(name):
    store = FeatureStore.open(DATA / name)
    x = store.dense("x")
    np.testing.assert_allclose(x.rows([0, 1])[:, :2], [[0, 0], [-3.2995613, 1.4966147]], rtol=1e-6)
    assert (x.width, sum(int(x.stored(shard).sum()) for shard in x)) == (16, 655)
    assert store.totals("mean") == Totals(rows=709, counted_rows=45, contexts=45, documents=8)
    assert store.csr("mean", "000000").nnz == 200


@pytest.mark.parametrize(
    ("name", "types"), [("store-v4", ("int64", "int32")), ("store-v5", ("int32", "int32"))]
)
def test_index_arrays_have_one_type_since_version_5(name, types):
    store = FeatureStore.open(DATA / name)
    group = zarr.open_group(store.object_path("mid", store.shards[0].name, CSR), mode="r")
    assert (str(group["indptr"].dtype), str(group["indices"].dtype)) == types


@pytest.mark.parametrize(("name", "are_checked"), [("store-v5", False), ("store-v6", True)])
def test_chunks_and_footers_have_checksums_since_version_6(name, are_checked):
    store = FeatureStore.open(DATA / name)
    shard = store.shards[0].name
    values = zarr.open_array(store.object_path("mid", shard, CSR) / "data", mode="r")
    postings = pq.read_metadata(store.object_path("mid", shard, POSTINGS))
    assert any(type(codec).__name__ == "Crc32cCodec" for codec in values.compressors) is are_checked
    assert (b"latentlake.footer" in (postings.metadata or {})) is are_checked
