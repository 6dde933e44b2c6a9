"""Negative activations are active: an AbsTopK pass from the worker to the figures, against brute force."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from jobs.figures import FIGURES
from jobs.lake.run import run
from jobs.tables.rank import window
from jobs.views.top import top
from pipeline.statistics.features.histogram import bin_edges
from pipeline.store import FeatureStore
from tests.fixtures.runs import DRAWN, run_file
from tests.lake.test_run import brute_force

pytestmark = pytest.mark.slow

D_SAE = 64


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    """A finished AbsTopK run: its folder, its store, and the stored activations, float32 [N, F]."""
    folder = tmp_path_factory.mktemp("lake")
    run(run_file(folder, "abstopk", derive=DRAWN))
    store = FeatureStore.open(folder / "store")
    stored = np.concatenate([store.csr("mid", record.name).toarray() for record in store.shards])
    return folder, store, stored


def counted_rows(store):
    return np.concatenate([np.array(row) for row in store.scan_tokens().collect()["counted"]])


def test_both_signs_are_stored_and_are_those_of_the_dense_computation(lake):
    folder, store, stored = lake
    expected = brute_force(folder, store, "abstopk")
    np.testing.assert_array_equal(np.sign(stored), np.sign(expected))
    np.testing.assert_allclose(stored, expected, rtol=1.1e-3)
    assert (stored < 0).sum() > 100 < (stored > 0).sum()
    assert ((stored != 0).sum(axis=1)[counted_rows(store)] == 8).all()


def test_frequencies_moments_and_extremes_are_numpys(lake):
    _, store, stored = lake
    dense = stored[counted_rows(store)].astype(np.float64)
    table, active = store.scan_features("mid").collect(), dense != 0
    fired = active.any(axis=0)
    np.testing.assert_array_equal(table["n_active"], active.sum(axis=0))
    np.testing.assert_allclose(table["mean_all"], dense.mean(axis=0), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(table["var_all"], dense.var(axis=0), rtol=1e-9)
    masked = np.where(active, dense, np.nan)[:, fired]
    np.testing.assert_allclose(table["mean_active"].drop_nulls(), np.nanmean(masked, axis=0), rtol=1e-9)
    np.testing.assert_array_equal(table["min_activation"].drop_nulls(), np.nanmin(masked, axis=0))
    np.testing.assert_array_equal(table["max_activation"].drop_nulls(), np.nanmax(masked, axis=0))


def test_sigma_over_mu_keeps_the_sign_of_the_mean(lake):
    _, store, stored = lake
    dense = stored[counted_rows(store)].astype(np.float64)[:, (stored != 0).any(axis=0)]
    expected = dense.std(axis=0) / dense.mean(axis=0)
    assert (expected < 0).any()
    result = store.scan_features("mid").collect()["sigma_over_mu"].drop_nulls()
    np.testing.assert_allclose(result, expected, rtol=1e-7)


def test_the_histogram_counts_negative_bins_and_quantiles_are_near(lake):
    _, store, stored = lake
    for row in store.scan_features("mid").collect().iter_rows(named=True):
        values = np.sort(stored[:, row["feature"]][stored[:, row["feature"]] != 0]).astype(np.float64)
        assert sum(row["histogram_counts"]) == len(values)
        left, right = bin_edges(np.array(row["histogram_bins"], dtype=np.int16))
        inside = [((values > a) if a < 0 else (values >= a)) & ((values <= b) if b <= 0 else (values < b))
                  for a, b in zip(left, right, strict=True)]  # fmt: skip
        assert [int(mask.sum()) for mask in inside] == row["histogram_counts"]
        for percent in (1, 10, 25, 50, 75, 90, 99) if len(values) else ():
            exact = np.quantile(values, percent / 100, method="inverted_cdf")
            assert abs(row[f"q{percent:02d}_active"] - exact) <= abs(exact) / 16


def strongest_rows(stored, feature, k):
    """Rows by |activation|, the larger first, ties by row."""
    rows = np.flatnonzero(stored[:, feature])
    return rows[np.argsort(-np.abs(stored[rows, feature]), kind="stable")][:k]


def test_top_examples_and_queries_go_by_magnitude_and_keep_the_sign(lake):
    _, store, stored = lake
    examples = store.scan_table("mid", "examples").filter(kind="top").collect()
    signs = set()
    for feature in range(D_SAE):
        rows = strongest_rows(stored, feature, 20)
        table = examples.filter(feature=feature).sort("rank")
        query = store.contexts("mid", feature, 20)
        for result in (table, query):
            np.testing.assert_array_equal(result["row"], rows)
            np.testing.assert_array_equal(result["activation"], stored[rows, feature])
        signs |= set(np.sign(query["activation"][:1]))
    assert signs == {-1, 1}


def test_a_scan_for_strong_activations_finds_both_signs(lake):
    _, store, stored = lake
    limit = float(np.quantile(np.abs(stored[stored != 0]), 0.9))
    result = store.scan_activations("mid").filter(pl.col("activation").abs() > limit).collect()
    assert result.height == (np.abs(stored) > limit).sum()
    below = store.scan_activations("mid").filter(pl.col("activation") < -limit).collect()
    assert 0 < below.height == (stored < -limit).sum()


def test_quantile_examples_are_of_tenths_from_the_lowest_activation_to_the_highest(lake):
    _, store, stored = lake
    examples = store.scan_table("mid", "examples").filter(kind="quantile").collect()
    for (feature, interval), some in examples.group_by("feature", "interval"):
        values = np.sort(stored[:, feature][stored[:, feature] != 0])
        np.testing.assert_array_equal(stored[some["row"].to_numpy(), feature], some["activation"])
        place = np.searchsorted(values, some["activation"].to_numpy()) / len(values)
        bin_share = max(np.array(_share_in_bins(store, feature)))
        assert (np.abs(place - (interval + 0.5) / 10) <= 0.05 + bin_share + 1 / len(values)).all()


def _share_in_bins(store, feature):
    counts = store.scan_features("mid").filter(feature=feature).collect()["histogram_counts"][0]
    return counts / counts.sum()


def test_rankings_put_negative_values_last_and_nothing_is_left_out(lake):
    _, store, _ = lake
    features = store.scan_features("mid").collect()
    for by in ("sigma_over_mu", "mean_all"):
        ranked = window(store, "mid", by, 0, D_SAE, support=0)
        values = ranked[by].to_list()
        assert len(values) == features[by].drop_nulls().len()
        assert values == sorted(values, reverse=True)
        assert values[-1] < 0 < values[0]


def test_top_prints_the_strongest_of_either_sign_first(lake, capsys):
    _, store, stored = lake
    feature = next(f for f in range(D_SAE) if (stored[strongest_rows(stored, f, 1), f] < 0).any())
    top(store, "mid", feature, k=3)
    lines = [line for line in capsys.readouterr().out.splitlines() if "context " in line]
    rows = strongest_rows(stored, feature, 3)
    assert [line.split()[0] for line in lines] == [f"{stored[row, feature]:.2f}" for row in rows]


def test_every_figure_is_drawn_and_the_store_verifies(lake):
    _, store, _ = lake
    drawn = {path.name for path in store.layout.figures("mid").iterdir()}
    made = {name for name, drawing in FIGURES.items() if store.has_table("mid", drawing.table)}
    assert {"frequency", "l0", "sigma_over_mu"} <= made
    assert drawn == {f"{name}.{kind}" for name in made for kind in ("png", "svg")}
    report = store.verify()
    assert (report.problems, report.stale) == ([], [])


def test_the_other_layout_alone_gives_the_same_postings(lake, tmp_path):
    folder, store, stored = lake
    changes = {"root": str(tmp_path / "store"), "layouts": ["token_major"]}
    run(run_file(folder, "abstopk", store=changes))
    other = FeatureStore.open(tmp_path / "store")
    for feature in range(0, D_SAE, 7):
        for one, two in zip(other.rows_of("mid", feature), store.rows_of("mid", feature), strict=True):
            np.testing.assert_array_equal(one, two)
    assert (stored != 0).sum() == other.verify().nonzeros
