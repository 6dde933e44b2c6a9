"""Rankings and windows, against sorting by hand."""

from __future__ import annotations

import math

import polars as pl
import pytest

from jobs.rank import SHOWN, rank, ranking, show_window, window
from jobs.stats import stats
from pipeline.store import FeatureStore
from pipeline.store.tables import StaleTableWarning
from schemas.errors import InputError
from tests.store.build import build


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
    paths = rank(store, "site", ["sigma_over_mu", "max_activation"])
    assert [path.name for path in paths] == ["rankings.parquet", "ranking_summary.parquet"]
    table = store.scan_table("site", "rankings").collect()
    assert table.schema == {"by": pl.String, "rank": pl.UInt32, "feature": pl.UInt32, "value": pl.Float64}
    for by in ("sigma_over_mu", "max_activation"):
        expected = by_hand(store, by)
        assert (
            len({value for _, value in expected}) < len(expected) or by == "sigma_over_mu"
        )  # there are ties
        found = table.filter(pl.col("by") == by)
        assert found["rank"].to_list() == list(range(len(expected)))
        assert list(found.select("feature", "value").iter_rows()) == expected


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
    assert ranking(features, "x").rows() == [("x", 0, 1, 1.0)]


def test_ranking_by_nothing_is_an_empty_table(store):
    rank(store, "site", [])
    assert store.scan_table("site", "rankings").collect().height == 0


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("by", ["frequency", "max_activation", "active_contexts", "feature"])
def test_a_window_is_a_slice_of_the_ranking_with_the_statistics_beside_it(store, by, descending):
    found = window(store, "site", by, 3, 9, descending)
    expected = by_hand(store, by, descending=descending)[3:9]
    assert found["rank"].to_list() == [3, 4, 5, 6, 7, 8]
    assert found["feature"].to_list() == [feature for feature, _ in expected]
    assert found[by].to_list() == [value for _, value in expected]
    assert found.columns == ["rank", *dict.fromkeys(["feature", by, *SHOWN])]
    table = store.scan_features("site").collect()
    assert found["mean_all"].to_list() == table["mean_all"].gather(found["feature"]).to_list()


def test_a_window_is_cut_at_the_last_rank(store):
    assert window(store, "site", "n_active", 38, 1000)["rank"].to_list() == [38, 39]


@pytest.mark.parametrize(("start", "stop"), [(5, 5), (7, 3), (-1, 4)])
def test_an_empty_window_is_refused(store, start, stop):
    with pytest.raises(InputError, match=f"ranks {start} to {stop} are no window"):
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
            "'sigma_ovr_mu', which is no column of the feature table; did you mean 'sigma_over_mu'",
        ),
        ("histogram_bins", "'histogram_bins', which holds no numbers"),
        ("qqqq", "'qqqq', which is no column .* there are feature, "),
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


def test_show_window_prints_ranks_and_refuses_what_is_no_window(store, capsys):
    show_window(store, "site", "n_active", "2:4")
    printed = capsys.readouterr().out
    features = window(store, "site", "n_active", 2, 4)["feature"]
    assert all(
        f" {rank} " in printed and f" {feature} " in printed
        for rank, feature in zip([2, 3], features, strict=True)
    )
    for text in ("2", "a:b", "2:", "-1:4", "²:3"):
        with pytest.raises(InputError, match="is no START:STOP"):
            show_window(store, "site", "n_active", text)
