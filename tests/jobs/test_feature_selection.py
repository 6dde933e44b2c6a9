"""`--features`: numbers, ranges, all, or the first of a ranking."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from jobs.tables.profile import profile
from jobs.tables.rank import window
from jobs.tables.selection import chosen_features, parse_numbers, parse_ranks, select_features
from schemas.errors import InputError
from tests.fixtures.exports import built_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return built_store(tmp_path_factory.mktemp("store"))[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", list(range(40))),
        ("7", [7]),
        ("10:13", [10, 11, 12]),
        ("5, 1,10:12,11", [1, 5, 10, 11]),
        ("0:40", list(range(40))),
    ],
)
def test_numbers_and_ranges_name_each_feature_once_in_order(store, text, expected):
    result = select_features(store, "site", text)
    assert result.tolist() == expected
    assert result.dtype == np.uint32


def test_numbers_are_taken_once_and_in_their_order():
    assert parse_numbers("7, 3,5:8,3", "--contexts", 10) == [7, 3, 5, 6]


def test_top_names_those_of_the_largest_values_and_of_equal_ones_the_lower_number(store):
    table = store.scan_features("site").collect()
    ranked = table.filter(pl.col("sigma_over_mu").is_not_null())
    values = dict(ranked.select("feature", "sigma_over_mu").iter_rows())
    expected = sorted(sorted(values, key=lambda feature: (-values[feature], feature))[:6])
    assert select_features(store, "site", "top:6:sigma_over_mu").tolist() == expected
    dead = table.filter(pl.col("n_active") == 0)["feature"].to_list()
    assert dead  # which have no maximum
    assert not set(dead) & set(select_features(store, "site", "top:99:max_activation").tolist())
    assert np.array_equal(
        select_features(store, "site", "top:6"), select_features(store, "site", "top:6:frequency")
    )
    assert select_features(store, "site", "top:3:counted_rows").tolist() == [1, 2, 3]  # 0 is dead


def test_ranks_are_a_slice_of_the_ranking_in_its_order_and_top_is_its_beginning(store):
    order = window(store, "site", "n_active", 0, 40)["feature"].to_list()
    assert chosen_features(store, "site", "n_active:3:8") == order[3:8]
    assert chosen_features(store, "site", "top:8:n_active") == order[:8]
    assert chosen_features(store, "site", "n_active:38:99") == order[38:]
    assert select_features(store, "site", "n_active:3:8").tolist() == sorted(order[3:8])
    assert (
        parse_ranks("top:5", "--features")
        == parse_ranks("frequency:0:5", "--features")
        == ("frequency", 0, 5)
    )


def test_columns_of_the_profile_rank_too_and_before_there_is_one_its_command_is_named(tmp_path):
    store = built_store(tmp_path)[1]
    with pytest.raises(InputError, match="run `latentlake profile`"):
        select_features(store, "site", "top:3:tokens")
    tokens = profile(store, "site")["tokens"].to_list()
    expected = sorted(range(40), key=lambda feature: (-tokens[feature], feature))[1:4]
    assert chosen_features(store, "site", "tokens:1:4") == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "neither a number"),
        ("1,,2", "neither a number"),
        ("x", "'x' is neither a number"),
        ("-1", "neither a number"),
        ("²", "neither a number"),
        ("1:", "neither a number"),
        ("5:5", "is an empty range"),
        ("9:3", "is an empty range"),
        ("40", "there are 0 to 39"),
        ("30:99999999999999999999", "there are 0 to 39"),
        ("top:3:a:b", "not top:N:COLUMN"),
        ("top:0:frequency", "not top:N:COLUMN"),
        ("top:x:frequency", "not top:N:COLUMN"),
        ("top:3:", "not top:N:COLUMN"),
        ("top:3:frequent", "cannot rank by 'frequent', which is not a column .*; did you mean 'frequency'"),
        ("top:3:top_tokens", "did you mean 'top_token'"),
        ("top:3:histogram_bins", "which holds no numbers"),
        ("frequent:0:3", "cannot rank by 'frequent', which is not a column .*; did you mean 'frequency'"),
        ("frequency:0", "not COLUMN:START:STOP"),
        ("frequency:0:x", "not COLUMN:START:STOP"),
        ("frequency:0:3:4", "not COLUMN:START:STOP"),
        ("frequency:3:3", "ranks 3 to 3 are empty"),
        ("frequency:99:120", "40 of 40 features have a value of frequency, and none has rank 99"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(store, text, says):
    with pytest.raises(InputError, match=says):
        select_features(store, "site", text)
