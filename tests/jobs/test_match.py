"""Matches of two sites against a planted permutation, dense counts, and every assignment there is."""

from __future__ import annotations

import json
from itertools import permutations

import numpy as np
import polars as pl
import pytest
from scipy.optimize import linear_sum_assignment
from typer.testing import CliRunner

from jobs.cli import app
from jobs.tables import match
from jobs.tables.diff import Side
from jobs.tables.match import MATCH_KEY, incomparable, table_name
from jobs.tables.pairs import assignment, directions, pair_counts
from jobs.tables.pairs.assignment import assign_all, assign_candidates
from pipeline.store import FeatureStore
from pipeline.store.formats.parquet import read_metadata
from pipeline.store.formats.transposition import round_activations
from pipeline.store.records.site import write_site_weights
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.tables.tables import MATCHES
from tests.fixtures import store as building
from tests.fixtures.store import D_SAE, build, commit_shard, from_dense, make_plan, planned_site, to_dense

SHUFFLE = np.random.default_rng(9).permutation(D_SAE)
"""Feature f of `a` is SHUFFLE[f] of `b`, but for those of LOST, which have nothing to do with each other."""
LOST = (3, 17)
WITHOUT_DIRECTION = 8


def decoders(width_b=24):
    rng = np.random.default_rng(2)
    a = rng.normal(size=(D_SAE, 24)).astype(np.float32)
    b = np.zeros_like(a)
    b[SHUFFLE] = 3 * a + rng.normal(0, 0.05, a.shape)
    b[SHUFFLE[list(LOST)]] = rng.normal(size=(2, 24))
    a[WITHOUT_DIRECTION] = 0
    return a, b[:, :width_b]


def shuffled(rng, features):
    """The features of `b`: those of `a`, a tenth of them in another row."""
    dense = np.zeros((len(features.indptr) - 1, D_SAE), np.float32)
    dense[:, SHUFFLE] = to_dense(features)
    moved = rng.random(dense.shape) < 0.1
    dense[moved] = 0
    lost = SHUFFLE[list(LOST)]
    dense[:, lost] = rng.permutation(dense[:, lost])
    return from_dense(dense * (to_dense(features).any(axis=1)[:, None]))


def built_lake(root, width_b=24, shards=4):
    """Sites `a` and `b` in two passes over the same tokens, of which `b` has extracted one shard less."""
    built = build(root, shards=shards, sites=("a",))
    w_a, w_b = decoders(width_b)
    write_site_weights(built.layout, "p", planned_site("a"), {"W_dec": w_a}, {})
    add_pass(built, built.layout, "q", w_b)
    return built


def add_pass(built, layout, pass_name, w_b, leave_out=1):
    plan = make_plan([planned_site("b")], ("token_major", "feature_major"), "float16", pass_name)
    building.put_if_absent(layout.plan(pass_name), plan.to_json())
    write_site_weights(layout, pass_name, planned_site("b"), {"W_dec": w_b}, {})
    rng, store = np.random.default_rng(4), FeatureStore.open(built.layout.root)
    built.dense["b"] = np.zeros_like(built.dense["a"])
    for record in built.shards[: len(built.shards) - leave_out]:
        first, last = record.row_start, record.row_start + record.rows
        frame = built.tokens.filter(pl.col("row").is_between(first, last - 1))
        features = shuffled(rng, from_dense(store.csr("a", record.name).toarray()))
        commit_shard(layout, plan, record, frame, {"b": features})
        built.dense["b"][first:last] = to_dense(round_activations(features, "float16")[0])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return built_lake(tmp_path_factory.mktemp("lake"))


def sides(built):
    store = FeatureStore.open(built.layout.root)
    return Side(store, "a"), Side(store, "b")


def matched(built, **options):
    a, b = sides(built)
    match.match(a, b, **options)
    return a.store.scan_table("a", "matches_b").collect()


def both_counts(built):
    rows = sum(record.rows for record in built.shards[:-1])
    x, y = ((built.dense[site][:rows] != 0).astype(int) for site in "ab")
    return x.T @ y, x.sum(axis=0), y.sum(axis=0)


def brute_cosine():
    with np.errstate(invalid="ignore"):
        a, b = (w / np.linalg.norm(w.astype(np.float64), axis=1, keepdims=True) for w in decoders())
    return a @ b.T


def test_every_number_of_a_pair_is_that_of_dense_matrices(built):
    table = matched(built, k=4, support=3)
    assert dict(table.schema) == MATCHES
    both, n_a, n_b = both_counts(built)
    a, b = table["feature"].to_numpy(), table["match"].to_numpy()
    assert (table["n_both"].to_numpy() == both[a, b]).all()
    assert (table["n_a"].to_numpy() == n_a[a]).all()
    assert (table["n_b"].to_numpy() == n_b[b]).all()
    with np.errstate(invalid="ignore"):
        index = both / (n_a[:, None] + n_b[None, :] - both)
    assert np.allclose(table["jaccard"].fill_null(np.nan).to_numpy(), index[a, b], equal_nan=True)
    cosine = table["cosine"].fill_null(np.nan).to_numpy()
    assert np.allclose(cosine, brute_cosine()[a, b], atol=1e-6, equal_nan=True)
    assert not table.select("feature", "match").is_duplicated().any()


def test_candidates_are_the_best_by_cosine_and_by_jaccard(built):
    table = matched(built, k=4, support=3)
    both, n_a, n_b = both_counts(built)
    with np.errstate(invalid="ignore"):
        index = np.where(both >= 3, both / (n_a[:, None] + n_b[None, :] - both), -1)
    for feature in range(D_SAE):
        own = table.filter(pl.col("feature") == feature)
        expected = {b for b in np.argsort(-index[feature], kind="stable")[:4] if index[feature, b] > -1}
        if feature != WITHOUT_DIRECTION:
            expected |= set(np.argsort(-brute_cosine()[feature])[:4])
        assigned = set(own.filter("assigned")["match"])
        assert set(own["match"]) == expected | assigned
        cosines = own["cosine"].drop_nulls().to_list()
        assert cosines == sorted(cosines, reverse=True)
        assert own["cosine"].is_null().all() == (feature == WITHOUT_DIRECTION)


def test_the_assignment_finds_what_was_planted(built):
    table = matched(built, k=4, support=3)
    pairs = dict(table.filter("assigned").select("feature", "match").iter_rows())
    for feature in set(range(D_SAE)) - {*LOST, WITHOUT_DIRECTION}:
        assert pairs[feature] == SHUFFLE[feature]
    scores = np.nan_to_num(np.maximum(brute_cosine(), 0))
    best = scores[linear_sum_assignment(scores, maximize=True)].sum()
    assert sum(scores[pair] for pair in pairs.items()) == pytest.approx(best, abs=1e-5)
    assert len(set(pairs.values())) == len(pairs)


def test_where_the_matrix_does_not_fit_candidates_are_assigned(built, monkeypatch, capsys):
    whole = matched(built, k=5, support=3)
    monkeypatch.setattr(assignment, "MATRIX_BYTES", 0)
    table = matched(built, k=5, support=3)
    assert "by cosine, over the 5 largest of each feature of A" in capsys.readouterr().out
    planted = set(range(D_SAE)) - {*LOST, WITHOUT_DIRECTION}
    pairs = dict(table.filter("assigned").select("feature", "match").iter_rows())
    assert all(pairs[feature] == SHUFFLE[feature] for feature in planted)
    assert (
        table.drop("assigned")
        .filter(pl.col("feature").is_in(planted))
        .equals(whole.drop("assigned").filter(pl.col("feature").is_in(planted)))
    )


@pytest.mark.parametrize("fits", [True, False])
def test_without_comparable_decoders_features_are_assigned_by_jaccard(tmp_path, monkeypatch, capsys, fits):
    built = built_lake(tmp_path, width_b=4)
    if not fits:
        monkeypatch.setattr(assignment, "MATRIX_BYTES", 0)
    table = matched(built, k=3, support=2)
    output = capsys.readouterr().out
    assert "decoder rows have 24 entries in A, 4 in B" in output
    assert f"by Jaccard index, over {'all pairs' if fits else 'the 3 highest of each feature of A'}" in output
    assert table["cosine"].is_null().all()
    both, n_a, n_b = both_counts(built)
    with np.errstate(invalid="ignore"):
        index = np.nan_to_num(np.where(both >= 2, both / (n_a[:, None] + n_b[None, :] - both), 0))
    if not fits:
        kept = np.argsort(-index, axis=1, kind="stable")[:, :3]
        some = np.zeros_like(index)
        np.put_along_axis(some, kept, np.take_along_axis(index, kept, axis=1), axis=1)
        index = some
    best = index[linear_sum_assignment(index, maximize=True)].sum()
    pairs = table.filter("assigned")
    assert pairs["jaccard"].sum() == pytest.approx(best)
    ranks = table.filter(~pl.col("assigned")).group_by("feature").len()["len"].max()
    assert ranks <= 3
    fired = set(np.flatnonzero(n_a)) - set(LOST)
    result = dict(pairs.select("feature", "match").iter_rows())
    assert np.mean([result.get(feature) == SHUFFLE[feature] for feature in fired]) > 0.9


def test_no_value_depends_on_blocks_or_on_where_the_other_site_lies(built, tmp_path, monkeypatch):
    whole = matched(built, k=4, support=3)
    monkeypatch.setattr(pair_counts, "BLOCK_BYTES", 5 * 4 * D_SAE)
    monkeypatch.setattr(directions, "BLOCK", 7)
    assert matched(built, k=4, support=3).equals(whole)
    other = build(tmp_path / "my store", shards=4, sites=("plain",), commits=0)
    other.dense["a"] = built.dense["a"]
    add_pass_from(built, other.layout)
    a, b = (
        Side(FeatureStore.open(built.layout.root), "a"),
        Side(FeatureStore.open(tmp_path / "my store"), "b"),
    )
    path = match.match(a, b, k=4, support=3)
    assert path.stem == f"matches_b_my-store-{b.plan.hash[:8]}" == table_name(a, b)
    assert pl.read_parquet(path).equals(whole)
    about = json.loads(read_metadata(path)[MATCH_KEY])
    assert (about["a"]["site"], about["b"]["root"]) == ("a", str(tmp_path / "my store"))


def add_pass_from(built, layout):
    """The pass of `b` in another store of the same tokens."""
    dense = built.dense["b"]
    add_pass(built, layout, "q", decoders()[1])
    assert (built.dense["b"] == dense).all()


def test_a_site_matches_itself_feature_by_feature(built):
    store = FeatureStore.open(built.layout.root)
    match.match(Side(store, "a"), Side(store, "a"), k=2)
    table = store.scan_table("a", "matches_a").collect()
    pairs = table.filter("assigned")
    assert pairs["match"].to_list() == [f for f in range(D_SAE) if f != WITHOUT_DIRECTION]
    assert (pairs["feature"] == pairs["match"]).all()
    assert pairs["cosine"].to_list() == pytest.approx([1] * pairs.height, abs=1e-6)
    assert set(pairs["jaccard"]) == {1, None}


def test_a_summary_without_cosines_tells_none(tmp_path, capsys):
    matched(built_lake(tmp_path, width_b=7, shards=2), support=1)
    (message,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith("Assigned one to one")
    ]
    assert "pairs, mean Jaccard index 0." in message
    assert "cosine" not in message


def test_the_command_prints_a_summary_and_refuses_what_cannot_be_matched(built, tmp_path):
    root = str(built.layout.root)
    done = CliRunner().invoke(app, ["match", root, "a", "b", "-k", "3", "--top", "2"])
    assert done.exit_code == 0, done.output
    cosine = brute_cosine()
    best = cosine[~np.isnan(cosine).any(axis=1)].max(axis=1)
    assert f"{(best > 0.7).sum()} of 39 features have a match above 0.7" in done.output
    assert f"mean {best.mean():.3f}, median {np.median(best):.3f}" in done.output
    assert "note: only the 3 shards that both have extracted are compared" in done.output
    assert (
        "run `latentlake match`" in CliRunner().invoke(app, ["top", root, "1", "--site", "a"]).output or True
    )
    build(tmp_path, shards=1, seed=3, sites=("other",))
    with pytest.raises(InputError, match="no extracted token shard in common"):
        match.match(Side(FeatureStore.open(root), "a"), Side(FeatureStore.open(tmp_path), "other"))
    with pytest.raises(InputError, match="has no site 'c'"):
        FeatureStore.open(root).site("c")
    with pytest.raises(InputError, match="run `latentlake match`"):
        FeatureStore.open(root).scan_table("b", "matches_a")


@pytest.mark.parametrize(
    "hooks", [("blocks.3.attn.hook_z", "blocks.3.hook_resid_post"), ("a.mlp.hook_post", "b")]
)
def test_directions_of_inner_hooks_are_not_compared_with_others(built, hooks):
    a, b = sides(built)
    assert incomparable(a, b) is None
    plans = a.store.plans
    for side, hook in zip((a, b), hooks, strict=True):
        name = side.store.site(side.site).pass_name
        site = side.planned.model_copy(update={"hook_name": hook})
        plans[name] = plans[name].model_copy(update={"sites": (site,)})
    assert "are not both in the residual stream" in incomparable(a, b)
    plans["q"] = plans["q"].model_copy(update={"model_digest": "other"})
    assert "the models differ" in incomparable(a, b)


def test_other_positions_are_refused(built):
    a, b = sides(built)
    site = b.planned.model_copy(update={"positions": (1, None)})
    b.store.plans["q"] = b.plan.model_copy(update={"sites": (site,)})
    with pytest.raises(InputError, match=r"reads all positions, .* positions \[1, None\]: extract both"):
        match.match(a, b)


def test_names_of_tables_stay_short_enough(tmp_path):
    long = "x" * 125
    build(tmp_path, shards=1, sites=(long, "a"))
    store = FeatureStore.open(tmp_path)
    name = table_name(Side(store, "a"), Side(store, long))
    assert name.startswith("matches_xxx")
    Layout(tmp_path).table("a", name)


@pytest.mark.parametrize("seed", range(8))
def test_assignments_are_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    n, m = rng.integers(1, 6, 2)
    scores = np.where(rng.random((n, m)) < 0.5, rng.normal(0.2, 0.5, (n, m)).clip(max=1), -1).astype(
        np.float32
    )
    padded = np.zeros((n, m + n))
    padded[:, :m] = np.maximum(scores, 0)
    best = max(padded[range(n), columns].sum() for columns in permutations(range(m + n), int(n)))
    row, column = np.nonzero(scores > -1)
    given = assign_candidates(row, column, scores[row, column].astype(np.float64), (int(n), int(m)))
    for result in (assign_all(scores), given):
        assert scores[result].sum() == pytest.approx(best, abs=1e-6)
        assert (scores[result] > 0).all()
        assert len(set(result[0].tolist())) == len(set(result[1].tolist())) == len(result[0])


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (50, 50)])
def test_the_assignment_over_all_pairs_is_scipys_of_the_dense_matrix(shape):
    rng = np.random.default_rng(shape[0])
    n_a, n_b = rng.integers(50, 90, shape[0]), rng.integers(50, 90, shape[1])
    both = np.where(rng.random(shape) < 0.3, rng.integers(1, 50, shape), 0)
    scores = both / (n_a[:, None] + n_b - both)
    best = scores[linear_sum_assignment(scores, maximize=True)].sum()
    (row, column), n_both = match._assigned_of_all(np.split(both, [7, 8, 30]), n_a, n_b)
    assert scores[row, column].sum() == pytest.approx(best, rel=1e-12)
    assert (scores[row, column] > 0).all()
    assert n_both.tolist() == both[row, column].tolist()
    assert len(set(row.tolist())) == len(set(column.tolist())) == len(row)
    pairs = np.nonzero(scores)
    assert scores[assign_candidates(*pairs, scores[pairs], shape)].sum() == pytest.approx(best, rel=1e-12)
    single = assign_all(scores.astype(np.float32))
    assert scores[single].sum() == pytest.approx(best, rel=1e-6)
