"""Windows around examples against the dense activations."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from jobs.export.windows import BINS, blocks, read_block, source, tenths
from jobs.tables.selection import select_features
from schemas.errors import InputError
from tests.fixtures.exports import built_store, context_of
from tests.fixtures.store import build


@pytest.fixture(scope="module", params=["both", "token_major", "feature_major"])
def made(request, tmp_path_factory):
    layouts = ("token_major", "feature_major") if request.param == "both" else (request.param,)
    return built_store(tmp_path_factory.mktemp("store"), layouts=layouts)


@pytest.mark.parametrize("window", [3, 20])
def test_every_value_and_token_of_a_window_is_the_stores(made, window):
    built, store = made
    about, chosen = source(store, "site", window), select_features(store, "site", "all")
    seen = 0
    for features in blocks(chosen, store.site("site").feature_block):
        block = read_block(about, chosen, features)
        for place, row in enumerate(block.examples.iter_rows(named=True)):
            context, n = context_of(built, row["context"]), int(block.lengths[place])
            assert n == min(window, context.height)
            first = row["position"] - row["place"]
            shown = context.slice(first, n)
            assert shown["row"][row["place"]] == row["row"]
            assert block.token_ids[place, :n].tolist() == shown["token"].to_list()
            dense = built.dense["site"][shown["row"].to_numpy(), row["feature"]]
            assert block.values[place, :n].tolist() == dense.tolist()
            assert block.values[place, row["place"]] == row["activation"]
            seen += 1
    examples = store.scan_table("site", "examples").collect()
    assert seen == examples.filter(pl.col("kind").is_in(["top", "quantile"])).height > 500


def test_histograms_count_every_activation_in_bins_of_equal_width(made):
    built, store = made
    chosen = select_features(store, "site", "1:5,17,20")
    about = source(store, "site", 8)
    result = [read_block(about, chosen, features) for features in blocks(chosen, 16)]
    assert [block.features["feature"].to_list() for block in result] == [[1, 2, 3, 4], [17, 20]]
    for block in result:
        for place, feature in enumerate(block.features["feature"].to_list()):
            values = built.dense["site"][:, feature]
            values = values[values != 0]
            assert block.histogram[place].sum() == len(values)
            if len(values):
                expected, _ = np.histogram(values.astype(np.float64), BINS)
                assert np.abs(block.histogram[place] - expected).sum() <= 2  # on an edge, rounding decides


def test_tenths_are_near_the_quantiles_of_the_activations_and_end_with_them():
    values = np.random.default_rng(0).exponential(3, 20_000).astype(np.float32)
    bins, counts = np.unique(np.sort(values.view(np.uint32) >> 20), return_counts=True)
    row = {"n_active": len(values), "min_activation": values.min(), "max_activation": values.max()}
    edges = tenths(row | {"histogram_bins": bins, "histogram_counts": counts})
    np.testing.assert_allclose(edges[1:-1], np.quantile(values, np.linspace(0.1, 0.9, 9)), rtol=0.02)
    assert edges == sorted(edges)
    assert (edges[0], edges[-1]) == (values.min(), values.max())
    assert tenths({"n_active": 0}) == []


def test_without_its_tables_the_command_that_makes_them_is_named(tmp_path):
    built = build(tmp_path / "store")
    from pipeline.store import FeatureStore

    with pytest.raises(InputError, match="latentlake stats"):
        source(FeatureStore.open(built.layout.root), "site", 8)
