"""Clusters of features and contexts, against what was planted and against brute force."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from jobs.tables.cluster import cluster
from jobs.tables.clusters.groups import TYPICAL_SHARE, majority, typical
from jobs.tables.clusters.kmeans import NO_CLUSTER, assign, default_clusters, fit, relabel
from jobs.tables.clusters.vectors import survey, unit_vectors
from jobs.tables.coactivation import coactivation
from jobs.tables.pairs.directions import unit_rows
from pipeline.store import FeatureStore
from pipeline.store.records.site import write_site_weights
from pipeline.tasks import Processes
from schemas.errors import InputError
from schemas.run.file import Cluster
from tests.fixtures.store import D_SAE, build, planned_site

ROOT = Path(__file__).parents[2]
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
CONFIG = Cluster(features=4, contexts=3, documents=3, min_cluster_size=3)
WITHOUT_DIRECTION = 1
"""A feature that fires, and whose decoder row is 0."""


def decoder(d_model=4):
    """Rows near four axes by feature number; that of WITHOUT_DIRECTION is 0."""
    rng = np.random.default_rng(3)
    rows = np.eye(d_model)[np.arange(D_SAE) % d_model] * rng.uniform(1, 5, (D_SAE, 1))
    rows += rng.normal(0, 0.1, rows.shape)
    rows[WITHOUT_DIRECTION] = 0
    return rows.astype(np.float32)


def built_store(root, **changes):
    built = build(root, **changes)
    write_site_weights(built.layout, "p", planned_site(), {"W_dec": decoder()}, {})
    return built, FeatureStore.open(built.layout.root)


@pytest.fixture(scope="module")
def clustered(tmp_path_factory):
    built, store = built_store(tmp_path_factory.mktemp("cluster") / "store")
    coactivation(store, "site", support=1)
    paths = cluster(store, "site", CONFIG)
    names = [path.stem for path in paths]
    kinds = ("feature", "coactivation", "density", "context", "document")
    tables = [f"{kind}_{what}" for kind in kinds for what in ("clusters", "cluster_summary")]
    assert sorted(names) == sorted([*tables, "feature_map"])
    return built, {name: store.scan_table("site", name).collect() for name in names}


def brute_context_vectors(built):
    """Dense sums [C, F] of every context and their tf-idf of length 1."""
    dense = built.dense["site"].astype(np.float64)
    sums = np.stack([dense[group].sum(axis=0) for group in rows_of_contexts(built)])
    weights = np.log((1 + len(sums)) / (1 + (sums != 0).sum(axis=0))) + 1
    vectors = np.sign(sums) * np.log1p(np.abs(sums)) * weights
    return sums, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rows_of_contexts(built):
    context = built.tokens["context"].to_numpy()
    return [np.flatnonzero(context == number) for number in range(context.max() + 1)]


def test_features_of_one_direction_share_a_cluster(clustered):
    built, tables = clustered
    table = tables["feature_clusters"]
    fired = np.flatnonzero((built.dense["site"] != 0).any(axis=0))
    assert table["feature"].to_list() == fired.tolist()
    has = table.drop_nulls("cluster")
    direction = has["feature"].to_numpy() % 4
    pairs = set(zip(direction.tolist(), has["cluster"].to_list(), strict=True))
    assert len(pairs) == 4
    assert {cluster for _, cluster in pairs} == {0, 1, 2, 3}


def test_a_feature_without_direction_has_no_cluster(clustered):
    row = clustered[1]["feature_clusters"].row(by_predicate=pl.col("feature") == WITHOUT_DIRECTION)
    assert row == (WITHOUT_DIRECTION, None, None, None)


def test_cosine_is_that_of_the_decoder_row_and_the_mean_direction_of_its_cluster(clustered):
    table = clustered[1]["feature_clusters"].drop_nulls()
    units = decoder() / np.maximum(np.linalg.norm(decoder(), axis=1, keepdims=True), 1e-9)
    for (number,), members in table.group_by("cluster"):
        mine = units[members["feature"].to_numpy()]
        centre = mine.mean(axis=0) / np.linalg.norm(mine.mean(axis=0))
        np.testing.assert_allclose(members["cosine"], mine @ centre, atol=1e-5, err_msg=str(number))
        by_rank = members.sort("rank")
        assert by_rank["rank"].to_list() == list(range(members.height))
        assert by_rank["cosine"].to_list() == sorted(members["cosine"], reverse=True)


def test_the_feature_summary_adds_up_its_members(clustered):
    built, tables = clustered
    table, summary = tables["feature_clusters"].drop_nulls(), tables["feature_cluster_summary"]
    active = (built.dense["site"] != 0).sum(axis=0)
    assert summary["size"].to_list() == sorted(summary["size"], reverse=True)
    for row in summary.iter_rows(named=True):
        members = table.filter(cluster=row["cluster"])
        assert row["size"] == members.height
        assert row["cohesion"] == pytest.approx(members["cosine"].cast(pl.Float64).mean())
        assert row["share"] == pytest.approx(active[members["feature"].to_numpy()].sum() / active.sum())
        assert row["features"] == members.sort("rank")["feature"].head(10).to_list()


def test_context_vectors_are_those_of_the_dense_computation(tmp_path):
    built, store = built_store(tmp_path / "store")
    sums, vectors = brute_context_vectors(built)
    result = survey(store, "site", {"context": 1000, "document": 1000}, seed=0)
    known = result.of["context"]
    np.testing.assert_allclose(known.sample.toarray(), sums, rtol=1e-6)
    np.testing.assert_array_equal(result.n_active, (built.dense["site"] != 0).sum(axis=0))
    np.testing.assert_array_equal(known.active, (sums != 0).sum(axis=0))
    np.testing.assert_allclose(unit_vectors(known.sample, known.weights()).toarray(), vectors, atol=1e-6)
    five = {"context": 5, "document": 4}
    some = survey(store, "site", five, seed=0).of["context"]
    assert some.sample.shape[0] == 5
    assert all((np.abs(sums - row).sum(axis=1) < 1e-4).any() for row in some.sample.toarray())
    assert some.number == known.number
    assert (survey(store, "site", five, seed=0).of["context"].sample != some.sample).nnz == 0
    assert (survey(store, "site", five, seed=1).of["context"].sample != some.sample).nnz > 0


def test_contexts_lie_nearest_to_the_centre_of_their_cluster(clustered):
    built, tables = clustered
    _, vectors = brute_context_vectors(built)
    table = tables["context_clusters"]
    assert table["context"].to_list() == list(range(len(vectors)))
    labels = table["cluster"].to_numpy()
    assert sorted(np.bincount(labels).tolist(), reverse=True) == np.bincount(labels).tolist()
    known = fit(sparse.csr_matrix(vectors.astype(np.float32)), 3, seed=0)
    cosines = vectors @ known.T
    np.testing.assert_allclose(table["similarity"], cosines.max(axis=1), atol=1e-5)
    assert len(set(zip(labels.tolist(), cosines.argmax(axis=1).tolist(), strict=True))) == len(
        set(labels.tolist())
    )


def test_contexts_carry_their_labels(clustered):
    built, tables = clustered
    tokens = built.tokens.filter(pl.col("token") != 0).group_by("context", maintain_order=True)
    labels = [pl.col("year"), pl.col("party")]
    shared = tokens.agg(pl.when(label.n_unique() == 1).then(label.first()) for label in labels)
    assert tables["context_clusters"].select("context", "year", "party").rows() == shared.rows()


def test_the_context_summary_is_that_of_brute_force(clustered):
    built, tables = clustered
    sums, _ = brute_context_vectors(built)
    table, summary = tables["context_clusters"], tables["context_cluster_summary"]
    active = sums != 0
    for row in summary.iter_rows(named=True):
        members = table.filter(cluster=row["cluster"])
        inside = active[members["context"].to_numpy()]
        lift = inside.mean(axis=0) / active.mean(axis=0).clip(1e-9)
        lift[inside.mean(axis=0) < TYPICAL_SHARE] = 0
        best = sorted(np.flatnonzero(lift), key=lambda f: (-lift[f], f))[:10]
        assert row["features"] == best
        assert row["lifts"] == pytest.approx(lift[best])
        assert row["size"] == members.height
        assert row["share"] == pytest.approx(members.height / table.height)
        assert row["cohesion"] == pytest.approx(members["similarity"].cast(pl.Float64).mean())
        near = members.sort("similarity", "context", descending=[True, False])
        assert row["examples"] == near["context"].head(5).to_list()
        years = members["year"].drop_nulls().to_list()
        commonest = min(set(years), key=lambda year: (-years.count(year), year))
        assert row["majority_year"] == commonest
        assert row["majority_year_share"] == years.count(commonest) / len(years)


def test_the_majority_of_equally_common_labels_is_the_least_and_null_does_not_count():
    rows = pl.DataFrame({"cluster": [0, 0, 0, 1, None], "x": ["b", "a", None, None, "c"]})
    assert majority(rows, "x").rows() == [(0, "a", 0.5)]


def test_typical_features_are_active_often_enough():
    active = np.array([[20, 1, 10, 0], [20, 0, 0, 3]])
    features, lifts = typical(active, np.array([20, 20]))
    assert features == [[2, 0], [3, 0]]  # feature 1 has a lift of 2 as well, in one context of 20
    assert lifts == [[2.0, 1.0], [2.0, 1.0]]


def test_clusters_are_numbered_by_size_then_by_first_member_and_empty_ones_dropped():
    labels, order = relabel(np.array([3, 0, 0, NO_CLUSTER, 2, 3, 2, 0]), 5)
    assert order.tolist() == [0, 3, 2]
    assert labels.tolist() == [1, 0, 0, NO_CLUSTER, 2, 1, 2, 0]


def test_vectors_without_direction_have_no_cluster():
    units, has = unit_rows(np.array([[3, 4], [0, 0], [np.inf, 1]], np.float32))
    np.testing.assert_allclose(units, [[0.6, 0.8], [0, 0], [0, 0]], rtol=1e-6)
    assert has.tolist() == [True, False, False]
    labels, cosine = assign(units, np.array([[1, 0], [0, 1]], np.float32))
    assert labels.tolist() == [1, NO_CLUSTER, NO_CLUSTER]
    np.testing.assert_allclose(cosine, [0.8, 0, 0], rtol=1e-6)


@pytest.mark.parametrize(("n", "clusters"), [(0, 2), (1, 2), (100, 5), (4608, 34), (10**9, 512)])
def test_the_default_number_of_clusters_grows_with_the_root(n, clusters):
    assert default_clusters(n) == clusters


@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("layout", [np.asarray, sparse.csr_matrix])
def test_fewer_vectors_than_clusters_are_clusters_of_their_own(n, layout):
    units = layout(np.eye(4, dtype=np.float32)[:n].reshape(n, 4))
    centres = fit(units, 8, seed=0)
    labels, cosine = assign(units, centres)
    assert len(set(labels.tolist())) == n == len(centres)
    np.testing.assert_allclose(cosine, 1, rtol=1e-6)


def test_equal_vectors_are_one_cluster():
    units = np.repeat(np.eye(2, dtype=np.float32)[:1], 6, axis=0)
    labels, _ = relabel(assign(units, fit(units, 3, seed=0))[0], 3)
    assert labels.tolist() == [0] * 6


def test_fewer_than_requested_is_said(tmp_path, capsys):
    _, store = built_store(tmp_path / "store", shards=1, documents=1)
    cluster(store, "site", Cluster(features=500, contexts=400))
    printed = " ".join(capsys.readouterr().out.split())
    contexts = store.scan_table("site", "context_clusters").collect()
    assert "(500 requested, but no more differ)" in printed
    assert f"{contexts.height} contexts in {contexts.height} clusters (400 requested" in printed


def test_a_store_in_which_nothing_fires_gives_empty_clusters(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tests.fixtures.store.random_features", _nothing)
    _, store = built_store(tmp_path / "store", shards=1)
    coactivation(store, "site")
    cluster(store, "site", Cluster())
    assert store.scan_table("site", "feature_map").collect().height == 0  # so `plots` asks for no other run
    for table in ("coactivation_clusters", "density_clusters", "density_cluster_summary"):
        assert not store.has_table("site", table) or store.scan_table("site", table).collect().height == 0
    assert store.scan_table("site", "feature_clusters").collect().height == 0
    contexts = store.scan_table("site", "context_clusters").collect()
    assert contexts["cluster"].null_count() == contexts.height > 0
    assert store.scan_table("site", "context_cluster_summary").collect().height == 0
    assert f"{contexts.height} with nothing active left out" in " ".join(capsys.readouterr().out.split())


def _nothing(rng, stored):
    from schemas.values import SparseFeatures

    return SparseFeatures(np.zeros(len(stored) + 1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))


def test_nothing_committed_is_said(tmp_path):
    _, store = built_store(tmp_path / "store", shards=1, commits=0)
    with pytest.raises(InputError, match="latentlake extract"):
        cluster(store, "site", Cluster())


@pytest.mark.slow
def test_tables_are_the_same_bytes_for_any_number_of_threads(clustered, tmp_path):
    built, _ = clustered
    code = (
        "import sys; from jobs.tables.cluster import cluster; from pipeline.store import FeatureStore; "
        "from schemas.run.file import Cluster; "
        "config = Cluster(features=4, contexts=3, documents=3, min_cluster_size=3); "
        "paths = cluster(FeatureStore.open(sys.argv[1]), 'site', config); "
        "import hashlib; print(*[hashlib.sha256(p.read_bytes()).hexdigest() for p in paths]); "
        "print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    answers = []
    for threads in ("1", "2"):
        environment = os.environ | dict.fromkeys(THREADS, threads)
        done = subprocess.run(
            [sys.executable, "-c", code, str(built.layout.root)],
            capture_output=True, text=True, cwd=ROOT, env=environment, check=True,
        )  # fmt: skip
        answers.append(done.stdout.splitlines()[-2:])
    assert answers[0] == answers[1]
    assert answers[0][1] == "[]"  # and neither torch nor ray was loaded


@pytest.mark.slow
def test_tables_are_the_same_bytes_for_any_number_of_workers(clustered):
    built, _ = clustered
    config = CONFIG
    store = FeatureStore.open(built.layout.root)
    one = [path.read_bytes() for path in cluster(store, "site", config)]
    for workers in (2, 3):
        with Processes(workers) as tasks:
            assert [path.read_bytes() for path in cluster(store, "site", config, tasks)] == one
