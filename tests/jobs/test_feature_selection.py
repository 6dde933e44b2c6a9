"""`--features`: numbers, ranges, all, or the first of a ranking."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from jobs.feature_selection import parse_numbers, select_features
from schemas.errors import InputError
from tests.jobs.export.kit import built_store


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
    found = select_features(store, "site", text)
    assert found.tolist() == expected
    assert found.dtype == np.uint32


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
    assert select_features(store, "site", "top:3:counted_rows").tolist() == [0, 1, 2]


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
        ("top:3:a:b", "no top:N:COLUMN"),
        ("top:0:frequency", "no top:N:COLUMN"),
        ("top:x:frequency", "no top:N:COLUMN"),
        ("top:3:frequent", "no column 'frequent'"),
        ("top:3:histogram_bins", "no column"),
    ],
)
def test_nonsense_is_refused_in_a_sentence(store, text, says):
    with pytest.raises(InputError, match=says):
        select_features(store, "site", text)
