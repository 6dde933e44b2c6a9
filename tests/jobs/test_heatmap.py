"""Contexts × features: pooled as brute force pools, clustered as scikit-learn clusters, or refused."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from matplotlib import rc_context
from sklearn.cluster import KMeans

from jobs import cli
from jobs.figures import fonts
from jobs.figures.heatmap import (
    RED,
    draw_clustered,
    draw_frequencies,
    draw_matrix_sparsity,
    draw_plain,
    features_of,
    matrix_of,
    sparsity_of,
)
from jobs.figures.plots import render
from jobs.figures.style import STYLE
from jobs.tables.rank import window
from jobs.tables.stats import stats
from jobs.views import context_matrix
from jobs.views.heatmap import cluster_contexts, heatmap, selected
from pipeline.statistics.pooling import POOLINGS
from pipeline.store import FeatureStore
from schemas.errors import InputError
from tests.fixtures.figures import hangul_font
from tests.fixtures.store import D_SAE, build


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    built = build(tmp_path_factory.mktemp("heatmap") / "store", shards=3, documents=20)
    store = FeatureStore.open(built.layout.root)
    stats(store, "site")
    return built, store


def brute(built, features, pool):
    """Pooled activations [contexts, features], dense."""
    dense, tokens = built.dense["site"].astype(np.float64), built.tokens
    context, counted = tokens["context"].to_numpy(), (tokens["token"] != 0).to_numpy()
    rows = []
    for number in range(context.max() + 1):
        mine = dense[(context == number) & counted][:, features]
        strongest = mine[np.abs(mine).argmax(axis=0), np.arange(len(features))]
        rows.append(
            {"max": strongest, "sum": mine.sum(axis=0), "mean": mine.mean(axis=0), "last": mine[-1]}[pool]
        )
    return np.stack(rows)


@pytest.mark.parametrize("pool", POOLINGS)
def test_activations_are_pooled_over_the_counted_rows_of_a_context(made, pool):
    built, store = made
    table = selected(store, "site", pool, features="3,1,7:10")
    assert features_of(table) == ["3", "1", "7", "8", "9"]
    expected = brute(built, [3, 1, 7, 8, 9], pool)
    result = matrix_of(table)
    if pool == "max":  # of 1 and -1 either is the strongest
        result, expected = np.abs(result), np.abs(expected)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-7)
    assert table["context"].to_list() == list(range(len(expected)))


def test_a_ranking_a_label_and_the_strongest_contexts_choose(made):
    built, store = made
    requested = {"ranking": "frequency:2:8", "where": ["party=red"], "top": 4, "contexts": "0:40"}
    table = selected(store, "site", "sum", **requested)
    ranked = window(store, "site", "frequency", 2, 8)["feature"].to_list()
    assert features_of(table) == [str(feature) for feature in ranked]
    assert table["party"].to_list() == ["red"] * 4
    parties = store.scan_tokens().select("context", "party").collect()
    red = parties.filter(pl.col("party") == "red", pl.col("context") < 40)["context"].to_numpy()
    sums = np.abs(brute(built, ranked, "sum")).sum(axis=1)[red]
    assert table["context"].to_list() == sorted(red[np.argsort(-sums, kind="stable")[:4]].tolist())


@pytest.mark.parametrize(("n", "clusters"), [(9, 0), (10, 1), (19, 1), (20, 2), (49, 4), (50, 5), (200, 5)])
def test_there_are_min_of_5_and_a_tenth_of_the_contexts_clusters(n, clusters):
    matrix = np.random.default_rng(0).random((n, 4)).astype(np.float32)
    labels = cluster_contexts(matrix)
    if not clusters:
        assert labels is None
        return
    assert sorted(set(labels.tolist())) == list(range(clusters))
    reference = KMeans(clusters, random_state=42, n_init=10).fit(matrix).labels_
    np.testing.assert_array_equal(labels, reference)


def test_equal_contexts_are_one_cluster():
    assert cluster_contexts(np.ones((60, 3), np.float32)).tolist() == [0] * 60


def test_the_command_writes_its_table_and_figures_and_prints_its_numbers(made, tmp_path, capsys):
    _, store = made
    out = tmp_path / "pictures" / "h.png"
    with pytest.raises(SystemExit) as stop:
        cli.main(["heatmap", str(store.layout.root), "--features", "0:40", "--out", str(out)])
    assert not stop.value.code
    names = {"h.parquet", "h.png", "h-plain.png", "h-sparsity.png", "h-frequency.png"}
    assert {path.name for path in out.parent.iterdir()} == names
    table = pl.read_parquet(out.with_suffix(".parquet"))
    assert table["cluster"].to_list() == sorted(table["cluster"])
    matrix, printed = matrix_of(table), " ".join(capsys.readouterr().out.split())
    assert f"{(matrix == 0).mean():.2%} zeros per feature" in printed
    zeros = (matrix == 0).mean(axis=0)
    assert f"per feature: mean {zeros.mean():.2%}, median {np.median(zeros):.2%}" in printed
    active = 1 - zeros
    numbers = f"mean {active.mean():.3g}, median {np.median(active):.3g}, min {active.min():.3g}"
    assert f"{numbers}, max {active.max():.3g}" in printed
    for number, n in table.group_by("cluster").len().rows():
        assert f"C{number}: {n} contexts" in printed


def test_borders_stand_between_the_clusters_and_names_next_to_them(made):
    table = pl.DataFrame({"context": range(7), "cluster": [0, 0, 0, 1, 1, 2, 2], "5": np.arange(7.0)})
    with rc_context(STYLE):
        axes = draw_clustered(table, "l9", "max").axes[0]
        plain = draw_plain(table, "l9", "max").axes[0]
    assert [line.get_ydata()[0] for line in axes.lines] == [2.5, 4.5]
    assert {line.get_color() for line in axes.lines} == {RED}
    assert [text.get_text() for text in axes.get_yticklabels()] == ["C0 (n=3)", "C1 (n=2)", "C2 (n=2)"]
    assert not plain.lines
    assert [text.get_text() for text in plain.get_yticklabels()] == [str(n) for n in range(7)]


def test_too_few_contexts_to_cluster_is_said_and_they_are_drawn(made, tmp_path, capsys, monkeypatch):
    _, store = made
    monkeypatch.setattr("jobs.views.heatmap.FIGURES", {"": draw_clustered, "-plain": draw_plain})
    heatmap(store, "site", tmp_path / "few.svg", features="1,2", contexts="0:4")
    assert "4 contexts are too few to cluster" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "few.svg").read_text() == (tmp_path / "few-plain.svg").read_text()


def test_both_options_take_ranks_in_either_spelling_and_keep_their_order(made):
    _, store = made
    columns = [
        selected(store, "site", "max", **requested).columns
        for requested in (
            {"ranking": "n_active:0:5"},
            {"ranking": "top:5:n_active"},
            {"features": "n_active:0:5"},
            {"features": "top:5:n_active"},
        )
    ]
    assert columns[1:] == columns[:1] * 3


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ({}, "--features 1,2,3 or --ranking"),
        ({"features": "1", "ranking": "frequency:0:5"}, "only one of them"),
        ({"features": "1,x"}, "'x' is neither a number"),
        ({"features": "5:5"}, "an empty range"),
        ({"features": f"1:{D_SAE + 1}"}, f"there are 0 to {D_SAE - 1}"),
        ({"ranking": "frequency"}, "not COLUMN:START:STOP"),
        ({"ranking": "frequencies:0:5"}, "did you mean 'frequency'"),
        ({"features": "1", "contexts": "100000"}, "--contexts '100000'"),
        ({"features": "1", "where": ["nation=x"]}, "has no label 'nation'"),
        ({"features": "1", "pool": "median"}, "last, mean, max, sum"),
        ({"features": "1", "where": ["party=red", "party=blue"]}, "no document has all of .*"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(made, tmp_path, requested, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        heatmap(made[1], "site", tmp_path / "h.png", **requested)
    assert not list(tmp_path.iterdir())


def test_more_contexts_or_features_than_a_picture_shows_are_refused(made, tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.views.heatmap.MOST_CONTEXTS", 10)
    monkeypatch.setattr("jobs.views.heatmap.MOST_FEATURES", 5)
    with pytest.raises(InputError, match="give --top N"):
        heatmap(made[1], "site", tmp_path / "h.png", features="1")
    with pytest.raises(InputError, match="5 at most"):
        heatmap(made[1], "site", tmp_path / "h.png", features="0:6")
    with pytest.raises(InputError, match=r"must end with \.png or \.svg"):
        heatmap(made[1], "site", tmp_path / "h.pdf", features="0:6")


def test_sparsity_of_nothing_is_all_zeros():
    sparse = sparsity_of(np.zeros((0, 3), np.float32))
    assert (sparse.overall, sparse.counts.sum()) == (1.0, 0)


@pytest.fixture
def one_figure(monkeypatch):
    """The picture alone, for speed."""
    monkeypatch.setattr("jobs.views.heatmap.FIGURES", {"": draw_clustered})


@pytest.mark.parametrize(
    ("language", "title"),
    [
        ("en", "Contexts × features, clustered"),
        ("ko", "문맥 × 특징, 군집별"),
        ("both", "Contexts × features, clustered · 문맥 × 특징, 군집별"),
    ],
)
def test_the_figures_speak_the_language_that_is_chosen_whatever_fonts_are_there(
    made, tmp_path, monkeypatch, one_figure, language, title
):
    monkeypatch.setattr(fonts, "font_files", lambda: [str(hangul_font(tmp_path))])
    heatmap(made[1], "site", tmp_path / "h.svg", features="1,2", language=language)
    assert f">{title}<" in (tmp_path / "h.svg").read_text(encoding="utf-8")


def test_a_language_that_no_font_can_write_or_that_is_not_known_is_refused(made, tmp_path, monkeypatch):
    monkeypatch.setattr(fonts, "font_files", list)
    with pytest.raises(InputError, match=r"--language ko needs a font with Hangul, .* fonts-nanum"):
        heatmap(made[1], "site", tmp_path / "h.svg", features="1,2", language="ko")
    with pytest.raises(InputError, match="--language 'kr' is not one of en, ko, both"):
        heatmap(made[1], "site", tmp_path / "h.svg", features="1,2", language="kr")
    assert not list(tmp_path.iterdir())


def test_the_picture_of_one_cell_or_of_negative_ones_is_drawn():
    for value in (0.0, 2.0, -3.0):
        table = pl.DataFrame({"context": [4], "cluster": [None], "9": [value]})
        with rc_context(STYLE):
            for draw in (draw_plain, draw_matrix_sparsity, draw_frequencies):
                assert render(draw(table, "l9", "max"), "svg")


def test_a_label_may_be_called_cluster_or_a_number(made, monkeypatch):
    _, store = made
    contexts = context_matrix.all_contexts(store, "site").rename({"year": "3", "party": "cluster"})
    monkeypatch.setattr("jobs.views.heatmap.all_contexts", lambda *_: contexts)
    labels = {"3": "Int64", "cluster": "String"}
    monkeypatch.setattr(store, "lake", store.lake.model_copy(update={"label_columns": labels}))
    table = selected(store, "site", "max", features="3,1")
    assert features_of(table) == ["3", "1"]
    assert table["cluster_label"].to_list() == contexts["cluster"].to_list()
