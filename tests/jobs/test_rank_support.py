"""Features with few active rows come last in rankings; windows are printed for people, #1 first."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from matplotlib.text import Text

from jobs.cli import main
from jobs.figures.features import draw_sigma_over_mu
from jobs.tables.rank import rank, window
from jobs.tables.stats import stats
from pipeline.statistics.resampling import draw_weights
from pipeline.store import FeatureStore
from tests.fixtures.store import build
from tests.jobs.test_rank import by_hand

SUPPORTED = 30
"""Active rows; some features have fewer."""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    opened = FeatureStore.open(build(tmp_path_factory.mktemp("rank") / "store").layout.root)
    stats(opened, "site")
    return opened


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A store of twelve shards, and the counted rows of each, dense."""
    built = build(tmp_path_factory.mktemp("rank") / "store", shards=12, documents=3)
    opened = FeatureStore.open(built.layout.root)
    stats(opened, "site")
    kept = (built.tokens["token"] != 0).to_numpy()
    rows = [slice(record.row_start, record.row_start + record.rows) for record in built.shards]
    return opened, [built.dense["site"][place][kept[place]].astype(np.float64) for place in rows]


def test_features_with_few_active_rows_come_last_in_every_ranking(store, capsys):
    by = ["sigma_over_mu", "max_activation", "n_active"]
    rank(store, "site", by, support=SUPPORTED)
    printed = " ".join(capsys.readouterr().out.split())
    features = store.scan_features("site").collect()
    often = dict(features.select("feature", "n_active").iter_rows())
    for name in by:
        pairs = by_hand(store, name)
        enough = [pair for pair in pairs if often[pair[0]] >= SUPPORTED]
        few = [pair for pair in pairs if often[pair[0]] < SUPPORTED]
        assert few, "else the test tests nothing"
        result = store.scan_table("site", "rankings").filter(by=name).sort("rank").collect()
        assert list(result.select("feature", "value").iter_rows()) == enough + few
        assert result["rank"].to_list() == list(range(len(pairs)))
    few = [f for f, _ in by_hand(store, "sigma_over_mu") if often[f] < SUPPORTED]
    noun = "feature" if len(few) == 1 else "features"
    assert f"the {len(few)} {noun} with fewer than 30 active rows come last, after the" in printed
    assert "--support 0" in printed


def test_windows_go_by_the_same_ranks_as_the_table(store):
    rank(store, "site", ["sigma_over_mu"], support=SUPPORTED)
    order = store.scan_table("site", "rankings").sort("rank").collect()["feature"].to_list()
    assert window(store, "site", "sigma_over_mu", 0, 40, support=SUPPORTED)["feature"].to_list() == order
    literal = window(store, "site", "sigma_over_mu", 2, 9, support=0)["feature"].to_list()
    assert literal == [feature for feature, _ in by_hand(store, "sigma_over_mu")[2:9]]
    assert literal != order[2:9]


def test_intervals_of_ranks_have_features_with_few_rows_last_in_every_draw(many):
    store, shards = many
    support, draws = 25, 40
    often = (np.concatenate(shards) != 0).sum(0)
    rare = often < support
    assert 5 < rare.sum() < 35
    rank(store, "site", ["mean_all"], draws=draws, seed=4, support=support)
    result = store.scan_table("site", "rankings").collect().sort("feature")
    places = []
    for weights in draw_weights(draws, 12, 4):
        dense = np.concatenate([shard for shard, w in zip(shards, weights, strict=True) for _ in range(w)])
        order = np.lexsort((np.arange(40), -np.round(dense.mean(0), 12), rare))
        places.append(np.argsort(order))
    low, high = np.quantile(places, [0.025, 0.975], axis=0, method="inverted_cdf")
    assert result["rank_low"].to_list() == low.tolist()
    assert result["rank_high"].to_list() == high.tolist()


def printed_by(capsys, *arguments):
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    assert not done.value.code
    return capsys.readouterr().out


def test_all_windows_that_are_requested_are_printed_and_the_first_rank_is_1(store, capsys):
    by = ["--by", "n_active", "--by", "mean_all"]
    windows = ["--window", "0:2", "--window", "frequency:5:6"]
    printed = printed_by(capsys, "rank", str(store.layout.root), *by, *windows)
    titles = ["by n_active, largest first: #1 to #2", "by mean_all, largest first: #1 to #2"]
    titles.append("by frequency, largest first: #6 to #6")
    places = [printed.index(title) for title in titles]
    assert places == [printed.index(title) for title in titles]
    assert [printed.count(f"by {name}, ") for name in ("n_active", "mean_all", "frequency")] == [1, 1, 1]
    firsts = [line.split() for line in printed.splitlines() if line.strip().startswith("#1 ")]
    expected = [str(window(store, "site", name, 0, 1)["feature"][0]) for name in ("n_active", "mean_all")]
    assert all(feature in cells for feature, cells in zip(expected, firsts, strict=True))


@pytest.mark.parametrize(("support", "expected"), [(0, 0), (SUPPORTED, SUPPORTED), (None, 10)])
def test_a_window_takes_the_support_that_is_requested(store, capsys, support, expected):
    option = [] if support is None else ["--support", str(support)]
    root = str(store.layout.root)
    printed = printed_by(capsys, "rank", root, "--by", "sigma_over_mu", "--window", "0:5", *option)
    order = window(store, "site", "sigma_over_mu", 0, 5, support=expected)["feature"].to_list()
    lines = [line.split() for line in printed.splitlines() if line.strip().startswith("#")]
    assert [cells[0] for cells in lines] == ["#1", "#2", "#3", "#4", "#5"]
    assert all(str(feature) in cells for feature, cells in zip(order, lines, strict=True))
    few = pl.col("n_active").is_between(1, expected - 1)
    rare = store.scan_features("site").filter(few).collect().height
    assert (f"fewer than {expected} active rows come last" in " ".join(printed.split())) == (rare > 0)


def test_features_with_few_active_rows_which_rank_last_are_counted_and_not_drawn():
    values = [*np.linspace(9, 2, 300), *np.linspace(40, 30, 20)]
    columns = {"by": ["sigma_over_mu"] * 320, "rank": range(320), "feature": range(320), "value": values}
    figure = draw_sigma_over_mu(pl.DataFrame(columns), "site")
    curve = figure.axes[0].lines[0].get_xydata()
    assert curve[:, 0].tolist() == list(range(1, 301))
    assert curve[:, 1].max() == 9
    assert any("20 with few active rows rank last" in text.get_text() for text in figure.findobj(Text))
