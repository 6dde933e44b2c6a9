"""The neighbours of one feature, printed and drawn from stored tables alone."""

from __future__ import annotations

import shutil

import numpy as np
import polars as pl
import pytest
from matplotlib import rc_context
from matplotlib.image import imread
from matplotlib.text import Text
from typer.testing import CliRunner

from jobs.cli import app
from jobs.figures.neighbours import draw_neighbours
from jobs.figures.plots import render
from jobs.figures.style import STYLE
from jobs.tables.coactivation import coactivation
from jobs.views.neighbours import neighbours
from pipeline.store import FeatureStore
from pipeline.store.records.site import write_site_weights
from schemas.errors import InputError
from tests.fixtures.store import D_SAE, build, planned_site

FEATURE = 7


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    built = build(tmp_path_factory.mktemp("neighbours") / "store", shards=2)
    decoder = np.random.default_rng(0).normal(size=(D_SAE, 4)).astype(np.float32)
    write_site_weights(built.layout, "p", planned_site(), {"W_dec": decoder}, {})
    opened = FeatureStore.open(built.layout.root)
    coactivation(opened, "site", k=8, support=2)
    shutil.rmtree(opened.layout.root / "passes" / "p" / "data")
    return opened


@pytest.mark.parametrize("by", ["jaccard", "npmi", "phi", "conditional"])
def test_they_are_those_of_the_table(store, by):
    table = store.scan_table("site", "neighbours").collect()
    own = table.filter(pl.col("feature") == FEATURE, pl.col("by") == by).drop("by")
    assert neighbours(store, "site", FEATURE, by=by).equals(own)
    assert neighbours(store, "site", FEATURE, by=by, k=3).equals(own.head(3))


def test_the_command_prints_them_and_draws_them(store, tmp_path):
    command = ["neighbours", str(store.layout.root), str(FEATURE), "--by", "phi", "--figure"]
    done = CliRunner().invoke(app, [*command, str(tmp_path / "graph.png")])
    assert done.exit_code == 0, done.output
    own = neighbours(store, "site", FEATURE, by="phi")
    lines = [line.split() for line in done.output.splitlines()]
    for row in own.iter_rows(named=True):
        counts = [str(row[name]) for name in ("neighbour", "rank", "n_both", "n_a", "n_b")]
        measures = [f"{row[name]:.3f}" for name in ("jaccard", "npmi", "phi", "conditional")]
        assert counts + measures in lines
    image = imread(tmp_path / "graph.png")
    ink = (image[..., :3] < 0.9).any(axis=2)
    assert image.shape[:2] == (900, 1440)
    assert 0.01 < ink.mean() < 0.6
    assert not ink[[0, -1]].any()
    assert not ink[:, [0, -1]].any()


@pytest.mark.parametrize("by", ["jaccard", "cosine"])
def test_the_graph_names_every_neighbour_and_has_the_same_bytes_every_time(store, tmp_path, by):
    paths = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for path in paths:
        own = neighbours(store, "site", FEATURE, by=by, figure=path)
    text = paths[0].read_text()
    assert f"Neighbours of feature {FEATURE}" in text
    for row in own.iter_rows(named=True):
        assert f"{row['neighbour']} · {row[by]:.2f}" in text
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_numbers_of_features_are_names_and_have_no_commas():
    own = pl.DataFrame({"neighbour": [12345], "jaccard": [0.5], "n_a": [9000], "n_b": [9], "feature": [1702]})
    figure = draw_neighbours(own, own.clear(), "site", 1702, "jaccard")
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert any("feature 1702" in text for text in texts)
    assert "12345 · 0.50" in texts
    assert any("9,000 rows" in text for text in texts)


@pytest.mark.parametrize("n", [1, 2, 30])
def test_any_number_of_neighbours_can_be_drawn_and_equal_ones_too(n):
    own = pl.DataFrame({"neighbour": range(10, 10 + n), "jaccard": 0.5, "n_a": 9, "n_b": 9, "feature": 3})
    links = pl.DataFrame({"feature": [10] * (n > 1), "neighbour": [11] * (n > 1), "jaccard": [0.5] * (n > 1)})
    with rc_context(STYLE):
        text = render(draw_neighbours(own, links, "s", 3, "jaccard"), "svg").decode()
    assert text.count(" · 0.50") == n


def test_a_feature_without_neighbours_is_said_and_nothing_drawn(store, tmp_path, capsys):
    assert neighbours(store, "site", 0, figure=tmp_path / "none.png").is_empty()
    assert "Feature 0 of site has no neighbours by jaccard" in capsys.readouterr().out
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature": D_SAE}, "its features are 0 to 39"),
        ({"by": "jacard"}, "did you mean 'jaccard'"),
        ({"by": "zzz"}, "there are jaccard, npmi, phi, conditional, cosine"),
        ({"figure": "graph.gif"}, r"must end in \.png or \.svg"),
        ({"figure": "graph"}, r"must end in \.png or \.svg"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_sentence(store, tmp_path, options, message):
    if "figure" in options:
        options["figure"] = tmp_path / options["figure"]
    with pytest.raises(InputError, match=message):
        neighbours(store, "site", **{"feature": FEATURE, **options})
