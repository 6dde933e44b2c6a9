"""A small store of each format version stays in tests/data and opens for ever (tests/data/make_store.py)."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipeline.store import FeatureStore
from schemas.records import FORMAT_VERSION

DATA = Path(__file__).parent / "data"

NONZEROS = {"store-v1": 4664, "store-v2": 7684, "store-v3": 7684, "store-v4": 7684}
FEATURE_3 = {
    "store-v1": (56, 583, 0.195497),
    "store-v2": (63, 655, 0.193021),
    "store-v3": (63, 655, 0.193021),
    "store-v4": (63, 655, 0.193021),
}
STRONGEST = {
    "store-v1": [(553, 35, 2, "Federalist"), (4, 0, 4, "Whig")],
    "store-v2": [(553, 35, 2, "Federalist"), (4, 0, 4, "Whig")],
    "store-v3": [(553, 35, 2, "Federalist"), (4, 0, 4, "Whig")],
    "store-v4": [(553, 35, 2, "Federalist"), (4, 0, 4, "Whig")],
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
    found = store.contexts("mid", 3, 2)
    rows = found.select("row", "context", "position", "party").rows()
    assert rows == STRONGEST[store.layout.root.name]
    stored = sum(store.scan_activations(s).select(pl.len()).collect().item() for s in store.sites)
    assert stored == NONZEROS[store.layout.root.name]


def test_a_site_of_some_positions_and_signed_activations_reads_as_it_did():
    store = FeatureStore.open(DATA / "store-v2")
    assert store.totals("signed").counted_rows == 611
    activations = store.scan_activations("signed").select("activation").collect()["activation"]
    assert ((activations < 0).sum(), (activations > 0).sum()) == (1257, 1187)


def test_there_is_a_store_of_every_version():
    versions = range(1, FORMAT_VERSION + 1)
    assert [store.name for store in sorted(DATA.glob("store-v*"))] == [f"store-v{n}" for n in versions]


def test_the_controls_of_version_4_read_as_they_did():
    store = FeatureStore.open(DATA / "store-v4")
    found = {}
    for site in store.sites:
        table = store.scan_table(site, "control_features").filter(feature=3)
        columns = ("of", "control", "counted_rows", "n_active", "mean_all")
        found[site] = [(*row[:-1], round(row[-1], 6)) for row in table.select(*columns).collect().rows()]
    assert found == CONTROLS
