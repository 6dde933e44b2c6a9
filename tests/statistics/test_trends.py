"""Trends over numeric labels against a regression of all rows, written out, and over bursts without one."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from scipy import stats

from pipeline.statistics.documents.clustered import Pairs
from pipeline.statistics.documents.comparison import SUPPORT
from pipeline.statistics.documents.trends import NumericLabel, TrendSums
from schemas.tables.tables import LABEL_TRENDS

D = 60


def pairs_of(x: np.ndarray) -> Pairs:
    """Active rows int [F, D], as a shard has them."""
    feature, document = np.nonzero(x)
    active = x[feature, document]
    return Pairs(feature, document, active, active.astype(np.float64))


def trends(x: np.ndarray, n: np.ndarray, y: np.ndarray, parts: int = 1) -> pl.DataFrame:
    """The table of features with x [F, D] active of n [D] rows, the documents in several shards."""
    label = NumericLabel.of("y", y, (n > 0).astype(np.int64), n, n * n)
    assert label is not None
    sums = TrendSums(len(x), [label])
    for some in np.array_split(np.arange(len(n)), parts):
        sums.add(pairs_of(x[:, some]), [label.standardised(pl.Series(y[some]))], n[some])
    return sums.table(0)


def by_regression(x: np.ndarray, n: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope, standard error and p of one feature: least squares over every row, clustered by document."""
    document = np.repeat(np.arange(len(n)), n)
    fires = np.concatenate([np.arange(rows) < active for active, rows in zip(x, n, strict=True)])
    design = np.column_stack([np.ones(len(document)), y[document]])
    bread = np.linalg.inv(design.T @ design)

    def error(residual: np.ndarray, parameters: int) -> float:
        scores = np.zeros((len(n), 2))
        np.add.at(scores, document, design * residual[:, None])
        covariance = bread @ scores.T @ scores @ bread
        return float(np.sqrt(covariance[1, 1] * len(n) / (len(n) - parameters)))

    line = np.linalg.lstsq(design, fires.astype(float), rcond=None)[0]
    se = max(error(fires - design @ line, 2), error(fires - fires.mean(), 1))
    return line[1], se, 2 * stats.t.sf(abs(line[1] / se), len(n) - 2)


@pytest.fixture(scope="module")
def lake() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [F, D], n and y: features from the rare to the common, whose frequencies rise, fall or stay."""
    rng = np.random.default_rng(0)
    n = np.maximum(rng.lognormal(4, 0.8, D).astype(np.int64), 2)
    y = 1790.0 + rng.integers(0, 230, D)
    slopes = np.array([0, 0, 0, 3, -3, 4])
    rate = np.array([0.001, 0.02, 0.3, 0.05, 0.05, 0.002])[:, None] * np.exp(
        slopes[:, None] * (y - 1900) / 230
    )
    burst = rng.gamma(1, 1, (6, D))
    return rng.binomial(n, np.minimum(rate * burst, 0.9)), n, y


@pytest.mark.parametrize("parts", [1, 7])
def test_slope_error_and_p_are_those_of_a_regression_of_all_rows_clustered_by_document(lake, parts):
    x, n, y = lake
    table = trends(x, n, y, parts)
    assert dict(table.schema) == LABEL_TRENDS
    assert table["documents"].to_list() == (x > 0).sum(axis=1).tolist()
    tested = 0
    for row in table.iter_rows(named=True):
        slope, se, p = by_regression(x[row["feature"]], n, y)
        assert (row["slope"], row["se"]) == pytest.approx((slope, se), rel=1e-9)
        if row["p"] is not None:
            assert (row["z"], row["p"]) == pytest.approx((slope / se, p), rel=1e-9)
            tested += 1
    assert tested == 4  # two are too rare
    assert table.filter(pl.col("p") < 0.01).select("feature", pl.col("slope").sign()).rows() == [
        (3, 1.0),
        (4, -1.0),
    ]


def test_documents_without_a_number_or_a_row_take_no_part(lake):
    x, n, y = lake
    y, n = y.copy(), n.copy()
    y[3], y[5], y[8] = np.nan, np.inf, -np.inf
    n[[10, 11]] = 0
    x = np.where(n > 0, x, 0)
    kept = np.isfinite(y) & (n > 0)
    assert_frame_equal(trends(x, n, y), trends(x[:, kept], n[kept], y[kept]), rel_tol=1e-9)
    label = NumericLabel.of("y", y[kept], np.ones(kept.sum(), np.int64), n[kept], n[kept] ** 2)
    assert label is not None
    assert np.isnan(label.standardised(pl.Series([*map(str, y), None]))).tolist() == [*~np.isfinite(y), True]


def test_numbers_of_any_size_give_the_slope_in_their_own_unit(lake):
    x, n, y = lake
    plain, scaled = trends(x, n, y), trends(x, n, 1e9 + y * 1e-3)
    np.testing.assert_allclose(scaled["slope"], plain["slope"] * 1e3, rtol=1e-4)
    np.testing.assert_allclose(scaled["p"].drop_nulls(), plain["p"].drop_nulls(), rtol=1e-4)


def test_of_two_values_the_slope_is_the_difference_and_the_smaller_side_needs_its_documents():
    rng = np.random.default_rng(1)
    n, y = np.full(D, 100), np.where(np.arange(D) < 12, 7.0, 5.0)  # a fifth of them
    x = np.zeros((2, D), np.int64)
    x[0, rng.permutation(D)[: 5 * SUPPORT]] = 9
    x[1, rng.permutation(D)[: 5 * SUPPORT - 1]] = 9
    table = trends(x, n, y)
    for row in table.iter_rows(named=True):
        frequency = [x[row["feature"], y == value].sum() / n[y == value].sum() for value in (5, 7)]
        assert row["slope"] == pytest.approx((frequency[1] - frequency[0]) / 2)
    assert table["p"].is_null().to_list() == [False, True]


def test_the_smaller_side_is_of_documents_or_of_rows_whichever_is_less():
    y = np.where(np.arange(1006) < 6, 7.0, 5.0)
    n = np.where(y == 7, 10_000, 10)  # six long documents against a thousand short ones
    label = NumericLabel.of("y", y, np.ones(1006, np.int64), n, n * n)
    assert label.smaller_side() == pytest.approx(6 / 1006)
    n = np.where(y == 7, 1, 1000)
    label = NumericLabel.of("y", y, np.ones(1006, np.int64), n, n * n)
    assert label.smaller_side() == pytest.approx(6 / 1_000_006)


def test_a_label_without_a_slope_is_none_and_a_feature_of_all_rows_has_no_error():
    n = np.full(4, 10)
    one = np.ones(4, np.int64)
    assert NumericLabel.of("y", np.full(4, 3.0), one, n, n * n) is None
    assert NumericLabel.of("y", np.array([1.0, 2, np.nan, np.inf]), one, n, n * n) is None
    row = trends(np.array([[10] * 40]), np.full(40, 10), np.arange(40.0)).row(0, named=True)
    assert (row["slope"], row["se"]) == pytest.approx((0, 0), abs=1e-9)


@pytest.mark.parametrize("skewed", [False, True])
def test_bursts_without_a_trend_are_called_one_in_twenty_times_at_most(skewed):
    rng = np.random.default_rng(2)
    d, features = 150, 3000
    n = np.maximum(rng.lognormal(5, 1, d).astype(np.int64), 5)
    y = rng.exponential(size=d) if skewed else np.arange(d) * 1.0
    rate = 10 ** rng.uniform(-4, -1, (features, 1)) * rng.gamma(0.3, 1 / 0.3, (features, d))
    p = trends(rng.binomial(n, np.minimum(rate, 0.9)), n, y)["p"].drop_nulls().to_numpy()
    assert len(p) > 500
    assert 0.01 < (p < 0.05).mean() < 0.07
    assert (p < 0.001).mean() < 0.002
