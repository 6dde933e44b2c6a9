"""Features by co-activation and by density, documents, and names: what was planted, and brute force."""

from __future__ import annotations

from dataclasses import replace

import networkx
import numpy as np
import polars as pl
import pytest
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from jobs.tables.cluster import cluster
from jobs.tables.clusters import density, features, graph, kmeans, placing
from jobs.tables.clusters.assignment import EXAMPLES
from jobs.tables.clusters.graph import communities, embedded, graph_of
from jobs.tables.clusters.kmeans import NO_CLUSTER, assign, fit
from jobs.tables.clusters.naming import TOKENS, count_firing, naming_tokens
from jobs.tables.clusters.rows import Decoder, VectorsInMemory
from jobs.tables.coactivation import coactivation
from jobs.tables.pairs import directions
from jobs.tables.pairs.directions import Directions, directions_of, unit_rows
from pipeline.store import FeatureStore
from schemas.run.file import Cluster
from tests.jobs.test_cluster import CONFIG, brute_context_vectors, built_store, rows_of_contexts


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    built, store = built_store(tmp_path_factory.mktemp("features") / "store")
    coactivation(store, "site", support=1)
    cluster(store, "site", CONFIG)
    return built, store


def table(store, name):
    return store.scan_table("site", name).collect()


def pairs_of(n_both, n, rows):
    """A table of neighbours in which everybody is everybody's."""
    a, b = np.nonzero(np.triu(n_both, 1) + np.tril(n_both, -1))
    columns = {"feature": a, "neighbour": b, "n_both": n_both[a, b], "n_a": n[a], "n_b": n[b]}
    order = np.concatenate([np.arange((a == feature).sum()) for feature in range(len(n))])
    return pl.DataFrame(columns).with_columns(rank=order, jaccard=0.0)


def planted_rows(groups, size, rows, seed=0):
    """Active rows [rows, groups * size]: of each group one fires, and its features mostly together."""
    rng = np.random.default_rng(seed)
    of_row = rng.integers(0, groups, rows)
    group = np.repeat(np.arange(groups), size)
    return (of_row[:, None] == group) & (rng.random((rows, groups * size)) < 0.6) | (
        rng.random((rows, groups * size)) < 0.01
    )


def test_planted_groups_of_features_that_fire_together_are_found():
    active = planted_rows(6, 12, 4000).astype(np.int64)
    both, n = active.T @ active, active.sum(axis=0)
    result = graph_of(pairs_of(both, n, 4000), 4000, 72)
    members, cohesion, _ = communities(result, 1.0, seed=0)
    truth = np.repeat(np.arange(6), 12)
    assert adjusted_rand_score(truth, members.labels) == 1
    assert members.sizes.tolist() == [12] * 6
    assert (cohesion > 0.9).all()
    vectors = embedded(result, seed=0)
    cosine = vectors @ vectors.T
    assert cosine[truth[:, None] == truth].min() > cosine[truth[:, None] != truth].max()


def test_an_edge_weighs_npmi_and_chance_has_none():
    n, rows = np.array([300, 300, 50, 10]), 1000
    both = np.zeros((4, 4), np.int64)
    both[0, 1] = both[1, 0] = 90  # as often as chance has it
    both[0, 2] = both[2, 0] = 40
    both[2, 3] = both[3, 2] = 10
    result = graph_of(pairs_of(both, n, rows), rows, 5).toarray()
    p = 40 / rows
    assert result[0, 2] == result[2, 0] == pytest.approx(np.log(p / (0.3 * 0.05)) / -np.log(p))
    assert result[2, 3] == pytest.approx(np.log(0.01 / (0.05 * 0.01)) / -np.log(0.01))
    assert np.count_nonzero(result) == 4


def test_only_the_neighbours_by_jaccard_are_taken_where_the_table_has_several(monkeypatch):
    active = planted_rows(2, 4, 500).astype(np.int64)
    pairs = pairs_of(active.T @ active, active.sum(axis=0), 500)
    alone = graph_of(pairs, 500, 8)
    others = pairs.with_columns(by=pl.lit("phi"), n_both=pl.lit(1, pl.Int64))
    both = pl.concat([others, pairs.with_columns(by=pl.lit("jaccard"))])
    assert (graph_of(both, 500, 8) != alone).nnz == 0
    monkeypatch.setattr(graph, "LARGEST_GRAPH", 16)  # two of each
    nearest = graph_of(pairs.filter(pl.col("rank") < 2), 500, 8)
    assert (graph_of(pairs, 500, 8) != nearest).nnz == 0


def test_modularity_and_cohesion_are_those_of_networkx():
    active = planted_rows(3, 6, 1500, seed=1).astype(np.int64)
    result = graph_of(pairs_of(active.T @ active, active.sum(axis=0), 1500), 1500, 19)
    members, cohesion, quality = communities(result, 1.0, seed=3)
    assert members.labels[18] == NO_CLUSTER
    network = networkx.from_scipy_sparse_array(result)
    sets = [set(np.flatnonzero(members.labels == c).tolist()) for c in range(len(members.sizes))]
    network.remove_node(18)
    assert quality == pytest.approx(networkx.community.modularity(network, sets))
    for number, some in enumerate(sets):
        rest = set(network) - some
        cut = networkx.cut_size(network, some, rest, weight="weight")
        volume = networkx.volume(network, some, weight="weight")
        assert cohesion[number] == pytest.approx(1 - cut / volume)
        for node in some:
            inside = sum(d["weight"] for _, other, d in network.edges(node, data=True) if other in some)
            assert members.closeness[node] == pytest.approx(inside, rel=1e-6)


def test_coactivation_clusters_stand_in_the_table_with_their_strength(made):
    _, store = made
    rows, summary = table(store, "coactivation_clusters"), table(store, "coactivation_cluster_summary")
    assert rows.drop_nulls("cluster").height == summary["size"].sum()
    for row in summary.iter_rows(named=True):
        members = rows.filter(cluster=row["cluster"]).sort("rank")
        assert members["strength"].to_list() == sorted(members["strength"], reverse=True)
        assert row["features"] == members["feature"].head(10).to_list()


def test_without_neighbours_or_with_old_ones_it_is_said_and_the_rest_is_made(tmp_path, capsys):
    built, store = built_store(tmp_path / "store", shards=1)
    names = {path.stem for path in cluster(store, "site", CONFIG)}
    assert "feature_clusters" in names
    assert not any("coactivation" in name for name in names)
    assert "the table neighbours does not exist: run `latentlake coactivation`" in said(capsys)
    assert set(table(store, "feature_map")["by"]) == {"feature"}
    coactivation(store, "site")
    store.write_table("site", "neighbours", table(store, "neighbours"))
    stale = FeatureStore.open(built.layout.root)
    stale.receipts_digest = lambda site: "another"  # as after an append
    cluster(stale, "site", CONFIG)
    assert "the table neighbours is stale" in said(capsys)


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def planted_directions(groups, size, noise, d=96, seed=0):
    """Unit vectors near `groups` directions, then as many as `noise` that are near nothing."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(groups, d))
    near = np.repeat(centres, size, axis=0) + rng.normal(0, 0.35, (groups * size, d))
    return unit_rows(np.concatenate([near, rng.normal(size=(noise, d))]).astype(np.float32))[0]


def test_planted_dense_directions_are_found_and_noise_is_left_out():
    units = planted_directions(20, 8, 800)
    members, probability = density.dense_groups(VectorsInMemory(units), 5, seed=0)
    has = members.labels[:160] != NO_CLUSTER
    assert has.mean() > 0.9  # of a group the outermost may be noise
    assert adjusted_rand_score(np.repeat(np.arange(20), 8)[has], members.labels[:160][has]) == 1
    assert (members.labels[160:] == NO_CLUSTER).all()
    assert ((probability == 0) == (members.labels == NO_CLUSTER)).all()
    for number in range(20):
        mine = units[members.labels == number].astype(np.float64)
        centre = mine.mean(axis=0) / np.linalg.norm(mine.mean(axis=0))
        np.testing.assert_allclose(members.closeness[members.labels == number], mine @ centre, atol=1e-5)


def test_features_beyond_the_sample_join_the_dense_group_they_lie_in(monkeypatch):
    monkeypatch.setattr(density, "FIT_FEATURES", 600)
    units = planted_directions(20, 20, 800)
    members, probability = density.dense_groups(VectorsInMemory(units), 5, seed=0)
    joined = np.isnan(probability)
    truth = np.append(np.repeat(np.arange(20), 20), np.full(800, 99))
    assert 80 < joined.sum() <= 200
    assert (truth[joined] < 99).all()
    assert (members.labels[joined] != NO_CLUSTER).all()
    clustered = members.labels != NO_CLUSTER
    assert normalized_mutual_info_score(truth[clustered], members.labels[clustered]) > 0.95
    again, _ = density.dense_groups(VectorsInMemory(units), 5, seed=0)
    np.testing.assert_array_equal(again.labels, members.labels)


def test_random_directions_are_noise_to_the_last():
    units = planted_directions(0, 0, 600)
    members, _ = density.dense_groups(VectorsInMemory(units), 5, seed=0)
    assert set(members.labels.tolist()) == {NO_CLUSTER}
    uneven = unit_rows((units * np.linspace(0.2, 3, 96)).astype(np.float32) + np.float32(0.05))[0]
    assert set(density.dense_groups(VectorsInMemory(uneven), 5, seed=0)[0].labels.tolist()) == {NO_CLUSTER}


@pytest.mark.parametrize("n", [0, 1, 2, 4])
def test_fewer_directions_than_make_a_cluster_are_noise(n):
    members, _ = density.dense_groups(VectorsInMemory(np.eye(6, dtype=np.float32)[:n]), 5, seed=0)
    assert members.labels.tolist() == [NO_CLUSTER] * n


def test_documents_lie_nearest_to_the_centre_of_their_cluster(made):
    built, store = made
    dense, document = built.dense["site"].astype(np.float64), built.tokens["document"].to_numpy()
    sums = np.stack([dense[document == number].sum(axis=0) for number in range(document.max() + 1)])
    weights = np.log((1 + len(sums)) / (1 + (sums != 0).sum(axis=0))) + 1
    vectors = np.sign(sums) * np.log1p(np.abs(sums)) * weights
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    rows, summary = table(store, "document_clusters"), table(store, "document_cluster_summary")
    assert rows["document"].to_list() == list(range(len(sums)))
    has = rows.drop_nulls("cluster")
    assert has["document"].to_list() == np.flatnonzero(length[:, 0]).tolist()
    parts = {c: vectors[has.filter(cluster=c)["document"].to_numpy()] for c in summary["cluster"]}
    for number, mine in parts.items():
        centre = mine.mean(axis=0) / np.linalg.norm(mine.mean(axis=0))
        np.testing.assert_allclose(has.filter(cluster=number)["similarity"], mine @ centre, atol=1e-4)
    year = dict(zip(document.tolist(), built.tokens["year"].to_list(), strict=True))
    assert rows["year"].to_list() == [year[number] for number in rows["document"]]
    for row in summary.iter_rows(named=True):
        near = has.filter(cluster=row["cluster"]).sort("similarity", "document", descending=[True, False])
        assert row["examples"] == near["document"].head(EXAMPLES).to_list()


def brute_names(counts, everything):
    """Tokens by p(t | c) ln(p(t | c) / p(t)), from dense counts."""
    p, q = counts / counts.sum(), everything / everything.sum()
    score = {t: p[t] * np.log(p[t] / q[t]) for t in np.flatnonzero(counts)}
    return [t for t in sorted(score, key=lambda t: (-score[t], t)) if score[t] > 0][:TOKENS]


@pytest.mark.parametrize("name", ["feature", "coactivation", "density"])
def test_tokens_and_contexts_of_feature_clusters_are_those_of_brute_force(made, name):
    built, store = made
    active = built.dense["site"] != 0
    firing = np.stack([active[built.tokens["token"].to_numpy() == t].sum(axis=0) for t in range(50)])
    _, vectors = brute_context_vectors(built)
    rows = table(store, f"{name}_clusters").drop_nulls("cluster")
    for row in table(store, f"{name}_cluster_summary").iter_rows(named=True):
        mine = rows.filter(cluster=row["cluster"])["feature"].to_numpy()
        expected = brute_names(firing[:, mine].sum(axis=1), firing.sum(axis=1))
        assert row["tokens"] == [f" w{token}" for token in expected]
        score = np.abs(vectors[:, mine]).sum(axis=1) / np.sqrt(len(mine))
        best = np.sort(score)[::-1][: len(row["contexts"])]
        np.testing.assert_allclose(score[row["contexts"]], best, rtol=1e-5)


def test_tokens_of_context_clusters_are_those_of_brute_force(made):
    built, store = made
    rows = table(store, "context_clusters").drop_nulls("cluster")
    token, groups = built.tokens["token"].to_numpy(), rows_of_contexts(built)
    everything = np.bincount(token[token != 0], minlength=50)
    for row in table(store, "context_cluster_summary").iter_rows(named=True):
        mine = np.concatenate([groups[c] for c in rows.filter(cluster=row["cluster"])["context"]])
        counts = np.bincount(token[mine][token[mine] != 0], minlength=50)
        assert row["tokens"] == [f" w{t}" for t in brute_names(counts, everything)]


def test_a_planted_token_names_its_cluster_however_the_activations_are_cut(monkeypatch):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 30, 500).astype(np.int32)
    dense = rng.random((500, 6)) < 0.05
    dense[tokens == 7, 2] = True
    cluster_of = np.array([0, 0, 1, 1, NO_CLUSTER, 0])
    answers = []
    for chunk in (1 << 22, 3, 1):
        monkeypatch.setattr("jobs.tables.clusters.naming._CHUNK", chunk)
        counts = count_firing(tokens, sparse.csr_matrix(dense.astype(np.float32)), cluster_of, 2)
        answers.append(counts[:, :30].toarray())
    brute = [dense[:, cluster_of == c].sum(axis=1) for c in (0, 1)] + [dense.sum(axis=1)]
    expected = [np.bincount(tokens, weights=b, minlength=30) for b in brute]
    for answer in answers:
        np.testing.assert_array_equal(answer, expected)
    assert naming_tokens(counts)[1][0] == 7
    assert naming_tokens(count_firing(tokens[:0], sparse.csr_matrix((0, 6)), cluster_of, 2))[0].tolist() == []


def test_near_features_lie_near_on_the_map_and_every_run_gives_the_same(made):
    _, store = made
    places = table(store, "feature_map")
    assert set(places["by"]) == {"coactivation"}
    clusters = table(store, "coactivation_clusters").drop_nulls("cluster")
    assert places.select("feature", "cluster").rows() == clusters.select("feature", "cluster").rows()
    units = planted_directions(4, 25, 0)
    result = placing.placed(units)
    np.testing.assert_array_equal(placing.placed(units), result)
    distance = np.linalg.norm(result[:, None] - result, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (distance.argmin(axis=1) // 25 == np.arange(100) // 25).all()


def test_more_features_than_the_map_holds_are_sampled_and_that_is_said(made, capsys, monkeypatch):
    _, store = made
    monkeypatch.setattr(placing, "MOST", 12)
    cluster(store, "site", CONFIG)
    assert table(store, "feature_map").height == 12
    assert "12 of" in said(capsys)


def test_a_site_without_a_decoder_is_clustered_by_co_activation_alone(made, capsys, monkeypatch):
    _, store = made
    monkeypatch.setattr(Directions, "width", None)
    names = {path.stem for path in cluster(store, "site", Cluster(contexts=3, documents=2))}
    assert {"coactivation_clusters", "context_clusters", "document_clusters", "feature_map"} <= names
    assert not {"feature_clusters", "density_clusters"} & names
    assert "has no decoder" in said(capsys)


@pytest.mark.parametrize("most", [1 << 16, 90])
def test_cosines_by_direction_are_those_with_the_mean_of_the_members_that_are_reported(
    made, monkeypatch, most
):
    _, store = made
    monkeypatch.setattr(features, "FIT_FEATURES", most)
    units = planted_directions(3, 20, 300, d=12)  # most lie between clusters, so every step moves some
    monkeypatch.setattr(directions, "BLOCK", 50)
    decoder = Decoder(
        replace(directions_of(store, "site"), d_sae=360), np.setdiff1d(np.arange(360), [0, 1, 60, 200])
    )
    monkeypatch.setattr(Directions, "_rows", 3 * units, raising=False)
    result = features.by_direction("site", decoder, 7, seed=0)
    mine = units[decoder.features].astype(np.float64)
    assert len(result.members.order) == 7
    for number in range(7):
        own = result.members.labels == number
        members = mine[own]
        centre = members.mean(axis=0) / np.linalg.norm(members.mean(axis=0))
        np.testing.assert_allclose(
            result.members.closeness[result.members.labels == number], members @ centre, atol=1e-6
        )
        assert result.cohesion[number] == pytest.approx((members @ centre).mean(), abs=1e-6)


@pytest.mark.parametrize("n", [40, 300])
def test_k_means_ends_where_every_vector_is_nearest_to_the_mean_of_its_cluster(n):
    units = planted_directions(5, 4, n, d=9)
    for layout in (np.asarray, sparse.csr_matrix):
        centres = fit(layout(units), 6, seed=1)
        labels = (units @ centres.T).argmax(axis=1)
        means = unit_rows(np.stack([units[labels == c].sum(axis=0) for c in range(6)]))[0]
        np.testing.assert_allclose(centres, means, atol=1e-5)


def test_sparse_vectors_wider_than_a_sketch_are_clustered_as_well_as_by_scikit_learn(monkeypatch):
    monkeypatch.setattr(kmeans, "SKETCHED", 256)
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(6), 40)
    dense = (rng.random((240, 600)) < 0.02) | (rng.random((240, 600)) < 0.2) & (
        np.arange(600) % 6 == truth[:, None]
    )
    units = unit_rows(dense.astype(np.float32))[0]
    centres = fit(sparse.csr_matrix(units), 6, seed=0)
    reference = unit_rows(KMeans(6, n_init=10, random_state=0).fit(units).cluster_centers_)[0]
    assert assign(units, centres)[1].mean() > 0.995 * assign(units, reference)[1].mean()
    assert adjusted_rand_score(truth, assign(units, centres)[0]) > 0.95


def test_steps_from_any_clusters_on_leave_none_empty_and_lose_no_cosine():
    units = planted_directions(4, 10, 30, d=8)
    start = np.random.default_rng(0).integers(0, 9, 70)
    before = (units * kmeans.mean_directions(units, start)[start]).sum()
    labels, total = kmeans.lloyd(units, start)
    assert set(labels.tolist()) == set(range(labels.max() + 1))
    assert total > before
    again, same = kmeans.lloyd(units, labels)
    assert (again == labels).all()
    assert same == pytest.approx(total, rel=1e-6)
