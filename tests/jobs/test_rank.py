"""Rankings and windows, against sorting by hand."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from jobs.tables.profile import profile
from jobs.tables.rank import SHOWN, rank, show_windows, window
from jobs.tables.ranking import RANKINGS, ranking
from jobs.tables.stats import stats
from pipeline.statistics.resampling import draw_weights, ranks
from pipeline.store import FeatureStore
from pipeline.store.derived import features as site_tables
from pipeline.store.derived import rank_intervals
from pipeline.store.records.tables import StaleTableWarning
from schemas.errors import InputError
from tests.fixtures.store import build


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    opened = FeatureStore.open(build(tmp_path_factory.mktemp("rank") / "store").layout.root)
    stats(opened, "site")
    return opened


def by_hand(store, by, *, descending=True):
    """(feature, value) of features that have a value, sorted in plain Python."""
    table = store.scan_features("site").collect()
    values = zip(table["feature"], table[by], strict=True)
    pairs = [(f, v) for f, v in values if v is not None and not math.isnan(v)]
    return sorted(pairs, key=lambda pair: (-pair[1] if descending else pair[1], pair[0]))


def test_the_largest_value_comes_first_and_equal_values_go_by_feature(store):
    paths = rank(store, "site", ["sigma_over_mu", "max_activation"], support=0)
    assert [path.name for path in paths] == ["rankings.parquet", "ranking_summary.parquet"]
    table = store.scan_table("site", "rankings").collect()
    assert table.schema == RANKINGS
    for by in ("sigma_over_mu", "max_activation"):
        expected = by_hand(store, by)
        assert (
            len({value for _, value in expected}) < len(expected) or by == "sigma_over_mu"
        )  # there are ties
        result = table.filter(pl.col("by") == by)
        assert result["rank"].to_list() == list(range(len(expected)))
        assert list(result.select("feature", "value").iter_rows()) == expected


def test_features_without_a_value_have_no_rank_and_are_counted(store):
    rank(store, "site", ["sigma_over_mu", "n_active", "sigma_over_mu"])
    features = store.scan_features("site").collect()
    dead = features["sigma_over_mu"].null_count()
    assert dead > 0
    assert store.scan_table("site", "ranking_summary").collect().rows() == [
        ("sigma_over_mu", features.height - dead, dead),
        ("n_active", features.height, 0),
    ]


def test_a_value_that_is_not_a_number_has_no_rank():
    features = pl.DataFrame(
        {"feature": [0, 1, 2], "x": [math.nan, 1.0, None]}, schema_overrides={"feature": pl.UInt32}
    )
    assert ranking(features, "x", support=0).rows() == [("x", 0, 1, 1.0, None, None)]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A store of twelve shards, and the counted rows of each, dense."""
    built = build(tmp_path_factory.mktemp("rank") / "store", shards=12, documents=3)
    opened = FeatureStore.open(built.layout.root)
    stats(opened, "site")
    kept = (built.tokens["token"] != 0).to_numpy()
    rows = [slice(record.row_start, record.row_start + record.rows) for record in built.shards]
    return opened, [built.dense["site"][place][kept[place]].astype(np.float64) for place in rows]


def test_the_interval_of_a_rank_is_that_of_shards_drawn_anew(many, capsys):
    store, shards = many
    by, draws = ["sigma_over_mu", "mean_all", "n_active"], 60
    rank(store, "site", by, draws=draws, seed=4, support=0)
    assert "mean_all (40 features, a 95 % interval of" in capsys.readouterr().out
    table = store.scan_table("site", "rankings").collect()
    drawn = {name: [] for name in by}
    for weights in draw_weights(draws, 12, 4):
        dense = np.concatenate([shard for shard, w in zip(shards, weights, strict=True) for _ in range(w)])
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn["sigma_over_mu"].append(dense.std(0) / dense.mean(0))
        drawn["mean_all"].append(dense.mean(0))
        drawn["n_active"].append((dense != 0).sum(0).astype(np.float64))
    for name in by:
        result = table.filter(by=name).sort("feature")
        places = np.array([ranks(np.round(values, 12)) for values in drawn[name]])
        for feature, low, high in result.select("feature", "rank_low", "rank_high").iter_rows():
            there = places[:, feature][places[:, feature] >= 0]
            assert [low, high] == np.quantile(there, [0.025, 0.975], method="inverted_cdf").tolist()
    frequent = table.filter(by="n_active").filter(pl.col("value") > 0)
    assert (frequent["rank_high"] > frequent["rank_low"]).mean() > 0.5


def test_passes_ranges_and_the_number_of_workers_change_no_interval(many, monkeypatch):
    store, _ = many
    rank(store, "site", draws=20)
    once = store.scan_table("site", "rankings").collect()
    monkeypatch.setattr(rank_intervals, "VALUES_BYTES", 8 * 40 * 3 * 7)  # seven draws a pass
    monkeypatch.setattr(site_tables, "_RANGE_BYTES", 1)
    rank(store, "site", draws=20)
    assert store.scan_table("site", "rankings").collect().equals(once)
    rank(store, "site", draws=20, seed=1)
    assert not store.scan_table("site", "rankings").collect().equals(once)


def test_too_few_shards_are_said_and_one_has_no_interval(store, tmp_path, capsys):
    rank(store, "site")
    assert "too narrow to trust from 3 shards" in capsys.readouterr().out
    assert store.scan_table("site", "rankings").collect()["rank_low"].null_count() == 0
    one = FeatureStore.open(build(tmp_path / "store", shards=1).layout.root)
    stats(one, "site")
    rank(one, "site")
    assert "ranks have no interval from 1 shard" in capsys.readouterr().out
    table = one.scan_table("site", "rankings").collect()
    assert table["rank_low"].null_count() == table.height > 0


def test_features_rank_by_what_they_fire_on_too(tmp_path, capsys):
    store = FeatureStore.open(build(tmp_path / "store").layout.root)
    stats(store, "site")
    with pytest.raises(InputError, match="run `latentlake profile`"):
        rank(store, "site", ["top_token_share"])
    profile(store, "site")
    rank(store, "site", ["top_token_share", "frequency"], support=0)
    assert "ranks by top_token_share have no interval" in capsys.readouterr().out
    table = store.scan_table("site", "rankings").filter(by="top_token_share").collect()
    share = store.scan_table("site", "profile").collect().drop_nulls("top_token_share")
    assert table["value"].to_list() == share["top_token_share"].sort(descending=True).to_list()
    show_windows(store, "site", ["token_entropy_bits"], ["0:3"])
    assert "8 features of 40 have no token_entropy_bits and no rank" in capsys.readouterr().out


def test_ranking_by_nothing_is_an_empty_table(store):
    rank(store, "site", [])
    assert store.scan_table("site", "rankings").collect().height == 0


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("by", ["frequency", "max_activation", "active_contexts", "feature"])
def test_a_window_is_a_slice_of_the_ranking_with_the_statistics_next_to_it(store, by, descending):
    result = window(store, "site", by, 3, 9, descending, support=0)
    expected = by_hand(store, by, descending=descending)[3:9]
    assert result["rank"].to_list() == [3, 4, 5, 6, 7, 8]
    assert result["feature"].to_list() == [feature for feature, _ in expected]
    assert result[by].to_list() == [value for _, value in expected]
    assert result.columns == ["rank", *dict.fromkeys(["feature", by, *SHOWN])]
    table = store.scan_features("site").collect()
    assert result["mean_all"].to_list() == table["mean_all"].gather(result["feature"]).to_list()


def test_a_window_is_cut_at_the_last_rank(store):
    assert window(store, "site", "n_active", 38, 1000)["rank"].to_list() == [38, 39]


@pytest.mark.parametrize(("start", "stop"), [(5, 5), (7, 3), (-1, 4)])
def test_an_empty_window_is_refused(store, start, stop):
    with pytest.raises(InputError, match=f"ranks {start} to {stop} are not a window"):
        window(store, "site", "n_active", start, stop)


def test_a_window_past_the_end_says_how_many_features_have_a_value(store):
    ranked = store.scan_features("site").collect()["sigma_over_mu"].count()
    with pytest.raises(InputError, match=rf"{ranked} of 40 features have a value; start below that"):
        window(store, "site", "sigma_over_mu", 2000, 2050)


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (
            "sigma_ovr_mu",
            "'sigma_ovr_mu', which is not a column .* or `profile`; did you mean 'sigma_over_mu'",
        ),
        ("histogram_bins", "'histogram_bins', which holds no numbers"),
        ("qqqq", "'qqqq', which is not a column .* there are feature, "),
    ],
)
def test_an_unknown_column_is_refused_with_the_nearest(store, by, message):
    with pytest.raises(InputError, match=message):
        rank(store, "site", [by])
    with pytest.raises(InputError, match=message):
        window(store, "site", by, 0, 5)


def test_without_a_feature_table_the_command_that_makes_it_is_named(tmp_path):
    store = FeatureStore.open(build(tmp_path / "store").layout.root)
    with pytest.raises(InputError, match="latentlake stats"):
        rank(store, "site")


def test_a_ranking_of_a_stale_feature_table_is_stale(tmp_path):
    built = build(tmp_path / "store", commits=1)
    stats(FeatureStore.open(built.layout.root), "site")
    more = build(tmp_path / "more", commits=3)  # the same shards, all of them committed
    for shard in ("000001", "000002"):
        attempt = built.layout.attempt("p", shard, "a")
        attempt.parent.mkdir(parents=True)
        more.layout.attempt("p", shard, "a").rename(attempt)
        more.layout.commit("p", shard).rename(built.layout.commit("p", shard))
    store = FeatureStore.open(built.layout.root)
    with pytest.warns(StaleTableWarning):
        rank(store, "site")
    assert store.is_stale("site", "rankings")
    stats(store, "site")
    rank(store, "site")
    assert not store.is_stale("site", "rankings")


def test_a_window_may_name_its_own_column_in_either_spelling(store, capsys):
    show_windows(store, "site", ["n_active"], ["2:4"])
    printed = capsys.readouterr().out
    show_windows(store, "site", ["frequency"], ["n_active:2:4"])
    assert capsys.readouterr().out == printed
    show_windows(store, "site", ["frequency"], ["n_active:0:4"])
    printed = capsys.readouterr().out
    show_windows(store, "site", ["frequency"], ["top:4:n_active"])
    assert capsys.readouterr().out == printed


def test_a_printed_window_cuts_no_number_at_80_columns(store, capsys, monkeypatch):
    from rich.console import Console

    from jobs.tables import rank as module

    rare = (
        store.scan_features("site")
        .collect()
        .with_columns(
            feature=pl.col("feature") + 4_000_000_000,
            n_active=pl.col("n_active") + 12_000_000_000,
            kurtosis_active=pl.lit(-1.234567e-05),
            mean_all=pl.lit(3.03e-05),
            mean_active=pl.lit(-9.1237e-12),
            max_activation=pl.lit(-1.234e-05),
        )
    )
    monkeypatch.setattr(module, "_features", lambda *_: (rare, ""))
    monkeypatch.setattr(module, "console", Console(width=80))
    show_windows(store, "site", ["kurtosis_active"], ["0:3"])
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_a_window_of_a_column_without_values_is_refused_for_that(store, monkeypatch):
    from jobs.tables import rank as module

    none = store.scan_features("site").collect().with_columns(sigma_over_mu=pl.lit(None, pl.Float64))
    monkeypatch.setattr(module, "_features", lambda *_: (none, ""))
    with pytest.raises(InputError, match="no feature of site 'site' has a sigma_over_mu, so none has a rank"):
        window(store, "site", "sigma_over_mu", 0, 3)


def test_show_window_prints_ranks_and_refuses_what_is_no_window(store, capsys):
    show_windows(store, "site", ["n_active"], ["2:4"])
    printed = capsys.readouterr().out
    features = window(store, "site", "n_active", 2, 4)["feature"]
    assert all(
        f"#{rank} " in printed and f" {feature} " in printed
        for rank, feature in zip([3, 4], features, strict=True)
    )
    for text in ("2", "a:b", "2:", "-1:4", "²:3"):
        with pytest.raises(InputError, match="is not START:STOP"):
            show_windows(store, "site", ["n_active"], [text])
