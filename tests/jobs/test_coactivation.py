"""Neighbours are those of dense counts, exactly, whatever the blocks, layouts, compactions and workers."""

from __future__ import annotations

import shutil

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.lake.compact import compact
from jobs.tables.coactivation import coactivation
from jobs.tables.diff import Side
from jobs.tables.match import match
from jobs.tables.pairs import directions, pair_counts
from pipeline.store import FeatureStore
from pipeline.store.formats import parquet
from pipeline.store.records.site import write_site_weights
from pipeline.tasks import Processes
from schemas.errors import InputError
from schemas.tables.tables import DECODER_NEIGHBOURS, NEIGHBOURS
from tests.fixtures import store as building
from tests.fixtures.runs import extracted, run_content, run_file
from tests.fixtures.store import D_SAE, build, planned_site
from tests.store.test_remote_run import copied

ALWAYS, TWIN_OF_ALWAYS, RARE, TWINS = 1, 2, 3, (6, 7)
MEASURES = ["jaccard", "npmi", "phi", "conditional"]
DECODER = np.random.default_rng(5).normal(size=(D_SAE, 4)).astype(np.float32)
plain_features = building.random_features


def features_with_traps(rng, stored):
    """Random ones, two that are always active, one that seldom is, and two that are alike."""
    made = plain_features(rng, stored)
    dense = building.to_dense(made)
    dense[:, [ALWAYS, TWIN_OF_ALWAYS]] = stored[:, None] * [2.0, -0.5]
    dense[:, RARE] = np.where(np.cumsum(stored) <= 2, 1, 0) * stored
    dense[:, TWINS[1]] = -dense[:, TWINS[0]]
    return building.from_dense(dense)


def built_store(root, **changes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "random_features", features_with_traps)
        built = build(root, shards=4, **changes)
    write_site_weights(built.layout, "p", planned_site(), {"W_dec": DECODER}, {})
    return built


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return built_store(tmp_path_factory.mktemp("store") / "store")


def tables(root, **options):
    store = FeatureStore.open(root)
    coactivation(store, "site", **options)
    return [store.scan_table("site", name).collect() for name in ("neighbours", "decoder_neighbours")]


def brute_force(active, k, support):
    """By feature and measure: rows of the table, from 0 and 1 alone; `active` are the counted rows [N, F]."""
    x = active.astype(np.int64)
    n, both, total = x.sum(axis=0), x.T @ x, len(x)
    p, p_both = n / total, both / total
    with np.errstate(all="ignore"):
        values = {
            "jaccard": both / (n[:, None] + n[None, :] - both),
            "npmi": np.log(p_both / (p[:, None] * p[None, :])) / -np.log(p_both),
            "phi": np.corrcoef(x.T),
            "conditional": both / n[:, None],
        }
    values["phi"][(n == total)[:, None] | (n == total)[None, :]] = np.nan
    values["npmi"][both == total] = np.nan
    result = {}
    for a in range(x.shape[1]):
        for by in MEASURES:
            others = [b for b in range(x.shape[1]) if b != a and both[a, b] >= support]
            known = [b for b in others if not np.isnan(values[by][a, b])]
            result[a, by] = sorted(known, key=lambda b: (-round(values[by][a, b], 12), b))[:k]
    return result, values, n, both


@pytest.mark.parametrize(("k", "support"), [(5, 1), (100, 1), (3, 12), (2, 10**6)])
def test_neighbours_are_those_of_dense_counts(built, k, support):
    table, _ = tables(built.layout.root, k=k, support=support)
    counted = (built.tokens["token"] != 0).to_numpy()
    result, values, n, both = brute_force(built.dense["site"][counted] != 0, k, support)
    assert dict(table.schema) == NEIGHBOURS
    expected = [(a, by, rank, b) for (a, by), others in result.items() for rank, b in enumerate(others)]
    got = table.select("feature", "by", "rank", "neighbour").rows()
    ties = 1e-12
    assert [row[:3] for row in got] == [row[:3] for row in expected]
    for (a, by, _, b), (_, _, _, other) in zip(got, expected, strict=True):
        assert b == other or values[by][a, b] == pytest.approx(values[by][a, other], abs=ties)
    a, b = table["feature"].to_numpy(), table["neighbour"].to_numpy()
    assert (table["n_both"].to_numpy() == both[a, b]).all()
    assert (table["n_a"].to_numpy() == n[a]).all()
    assert (table["n_b"].to_numpy() == n[b]).all()
    for by in MEASURES:
        assert np.allclose(
            table[by].fill_null(np.nan).to_numpy(), values[by][a, b], atol=1e-12, equal_nan=True
        )


def test_a_feature_that_always_fires_has_no_phi_and_one_that_never_does_has_no_neighbour(built):
    table, _ = tables(built.layout.root, k=100, support=1)
    always = table.filter(pl.col("feature") == ALWAYS)
    assert set(always["by"]) == {"jaccard", "npmi", "conditional"}
    assert always["phi"].is_null().all()
    twin = always.filter(pl.col("neighbour") == TWIN_OF_ALWAYS)
    assert twin["by"].to_list() == ["jaccard", "conditional"]
    assert twin["jaccard"].to_list() == [1, 1]
    assert twin["npmi"].is_null().all()
    assert not table["feature"].is_in([0, 5, 10]).any()
    assert not table["neighbour"].is_in([0, 5, 10]).any()
    first = table.filter(pl.col("feature") == TWINS[0], pl.col("rank") == 0, pl.col("by") != "conditional")
    assert first["neighbour"].to_list() == [TWINS[1]] * 3  # signs do not matter: both are active
    assert first["phi"].to_list() == pytest.approx([1] * 3)


def test_a_pair_at_the_support_is_in_and_one_below_is_not(built):
    rows = (built.dense["site"][:, RARE] != 0).sum()
    assert rows == 8
    at, above = (tables(built.layout.root, k=100, support=n)[0] for n in (rows, rows + 1))
    of_rare = at.filter(pl.col("feature") == RARE)
    assert set(of_rare["neighbour"]) >= {ALWAYS, TWIN_OF_ALWAYS}
    assert (of_rare["n_both"] == rows).all()
    assert above.filter((pl.col("feature") == RARE) | (pl.col("neighbour") == RARE)).is_empty()


def test_decoder_neighbours_are_those_of_all_cosines(built):
    _, table = tables(built.layout.root, k=6)
    units = DECODER.astype(np.float64) / np.linalg.norm(DECODER.astype(np.float64), axis=1, keepdims=True)
    cosine = units @ units.T
    np.fill_diagonal(cosine, -2)
    assert dict(table.schema) == DECODER_NEIGHBOURS
    assert table["neighbour"].to_list() == np.argsort(-cosine, axis=1)[:, :6].ravel().tolist()
    assert np.allclose(table["cosine"].to_numpy(), -np.sort(-cosine, axis=1)[:, :6].ravel(), atol=1e-6)
    assert table["rank"].to_list() == list(range(6)) * D_SAE


def test_no_value_depends_on_blocks_layouts_or_a_compaction(built, tmp_path, monkeypatch):
    whole = tables(built.layout.root, support=2)
    monkeypatch.setattr(pair_counts, "BLOCK_BYTES", 5 * 4 * D_SAE)
    monkeypatch.setattr(pair_counts, "GATHERED", 50)
    monkeypatch.setattr(parquet, "_ROWS", 13)
    for layouts in (["token_major"], ["feature_major"], ["token_major", "feature_major"]):
        root = tmp_path / "-".join(layouts)
        built_store(root, layouts=layouts)
        if "feature_major" in layouts:
            compact(FeatureStore.open(root), "site")
        assert [a.equals(b) for a, b in zip(tables(root, support=2), whole, strict=True)] == [True, True]
    path = FeatureStore.open(root).layout.table("site", "neighbours")
    assert pq.read_metadata(path).row_group(0).num_rows == 13


@pytest.mark.slow
def test_no_byte_depends_on_the_number_of_workers(built, tmp_path, monkeypatch):
    monkeypatch.setattr(pair_counts, "BLOCK_BYTES", 5 * 4 * D_SAE)
    monkeypatch.setattr(directions, "BLOCK", 16)
    result = []
    for workers in (1, 3):
        root = shutil.copytree(built.layout.root, tmp_path / str(workers))
        with Processes(workers) as tasks:
            paths = coactivation(FeatureStore.open(root), "site", tasks)
        result.append([path.read_bytes() for path in paths])
    assert result[0] == result[1]


@pytest.mark.slow
def test_rows_are_those_of_the_sites_positions(tmp_path):
    content = run_content(tmp_path)
    sae = content["sites"][0]["sae"]
    sites = [{"name": "near", "sae": sae, "positions": [1, 5]}, {"name": "all", "sae": sae}]
    store = extracted(run_file(tmp_path, sites=sites), tables=False)
    for site in ("near", "all"):
        rows = store.totals(site).counted_rows
        dense = np.concatenate([store.csr(site, shard.name).toarray() for shard in store.shards])
        counted = np.concatenate([store.token_shard(site, shard.name).counted for shard in store.shards])
        assert rows == counted.sum()
        coactivation(store, site, k=3, support=4)
        table = store.scan_table(site, "neighbours").collect()
        _, values, n, _ = brute_force(dense[counted] != 0, 3, 4)
        a, b = table["feature"].to_numpy(), table["neighbour"].to_numpy()
        assert table.height
        assert (table["n_a"].to_numpy() == n[a]).all()
        for by in MEASURES:
            assert np.allclose(table[by].to_numpy(), values[by][a, b], atol=1e-12)


def test_the_command_writes_the_tables_that_readers_name(built):
    for name in ("neighbours", "decoder_neighbours"):
        built.layout.table("site", name).unlink(missing_ok=True)
        with pytest.raises(InputError, match="run `latentlake coactivation`"):
            FeatureStore.open(built.layout.root).scan_table("site", name)
    command = ["coactivation", str(built.layout.root), "-k", "4", "--support", "3"]
    done = CliRunner().invoke(app, [*command, "--no-decoder"])
    store = FeatureStore.open(built.layout.root)
    table = store.scan_table("site", "neighbours").collect()
    assert f"{table.height:,} neighbours of {table['feature'].n_unique()} features" in done.output
    assert not store.has_table("site", "decoder_neighbours")
    CliRunner().invoke(app, command)
    assert store.scan_table("site", "neighbours").collect().equals(table)
    assert store.scan_table("site", "decoder_neighbours").collect().height == 4 * D_SAE


def test_tables_on_object_storage_are_those_of_a_folder(built):
    whole = tables(built.layout.root, k=3)
    there = tables(copied(built.layout.root, "memory://near"), k=3)
    assert [a.equals(b) for a, b in zip(there, whole, strict=True)] == [True, True]
    store = FeatureStore.open("memory://near")
    match(Side(store, "site"), Side(FeatureStore.open(built.layout.root), "site"), k=2)
    assert store.scan_table("site", f"matches_site_store-{built.plan.hash[:8]}").collect().height >= 2 * 32


def test_a_site_without_a_shard_has_no_neighbours_to_find(tmp_path):
    build(tmp_path, shards=1, commits=0)
    with pytest.raises(InputError, match="no committed shard"):
        coactivation(FeatureStore.open(tmp_path), "site")


def test_a_site_in_which_nothing_fires_gets_empty_tables(tmp_path, monkeypatch):
    def nothing(rng, stored):
        return building.from_dense(np.zeros((len(stored), D_SAE)))

    monkeypatch.setattr(building, "random_features", nothing)
    built = build(tmp_path, shards=2)
    write_site_weights(built.layout, "p", planned_site(), {}, {})
    store = FeatureStore.open(tmp_path)
    assert [path.stem for path in coactivation(store, "site")] == ["neighbours"]
    table = store.scan_table("site", "neighbours").collect()
    assert table.is_empty()
    assert dict(table.schema) == NEIGHBOURS
