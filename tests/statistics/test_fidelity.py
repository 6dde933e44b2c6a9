"""Measures of fidelity as ratios of sums, and why one is missing."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from pipeline.statistics.documents.ratios import moments
from pipeline.statistics.evaluation.fidelity import FIDELITY_SHARDS, QUANTITIES, reasons, row_of, summary


def shard_of(name, documents):
    """A row of the table `fidelity_shards` of documents with these totals."""
    totals = np.array([[one.get(quantity, 0.0) for quantity in QUANTITIES] for one in documents])
    return {"shard": name, "made_from": name, **row_of(moments(totals))}


def test_the_recovered_share_compares_zeros_and_the_mean_with_clean_losses():
    one = {"predictions": 10, "clean": 30, "patched": 32, "zero": 100, "mean": 50, "rows": 10, "sst": 1}
    two = {"predictions": 30, "clean": 70, "patched": 76, "zero": 220, "mean": 70, "rows": 30, "sst": 1}
    shards = pl.DataFrame([shard_of("a", [one]), shard_of("b", [two])], schema=FIDELITY_SHARDS)
    rows = {row["measure"]: row for row in summary(shards, 4).iter_rows(named=True)}
    assert rows["patched_loss"]["value"] == 108 / 40
    assert rows["recovered_share"]["value"] == pytest.approx((320 - 108) / (320 - 100))
    assert rows["recovered_share_of_mean"]["value"] == pytest.approx((120 - 108) / (120 - 100))
    assert rows["recovered_share"]["tokens"] == 40
    above, below = np.array([68.0, 144.0]), np.array([70.0, 150.0])
    value = above.sum() / below.sum()
    se = np.sqrt(2 * ((above - value * below) ** 2).sum()) / below.sum()
    assert rows["recovered_share"]["se"] == pytest.approx(se, rel=1e-6)


def test_the_notebook_s_score_is_given_next_to_ours_and_named_apart():
    one = {"predictions": 10, "clean": 30, "patched": 32, "zero": 100, "mean": 50, "rows": 10, "sst": 1}
    one |= {"literal_predictions": 12, "literal_clean": 36, "literal_patched": 48, "literal_zero": 132}
    rows = {
        row["measure"]: row for row in summary(pl.DataFrame([shard_of("a", [one])]), 4).iter_rows(named=True)
    }
    assert rows["recovered_share"]["value"] == pytest.approx(68 / 70)
    assert rows["literal_recovered_share"]["value"] == pytest.approx((132 - 48) / (132 - 36))
    assert rows["literal_recovered_share"]["tokens"] == rows["literal_zero_loss"]["tokens"] == 12


ONE = {
    "predictions": 10,
    "clean": 30,
    "patched": 32,
    "zero": 100,
    "mean": 50,
    "rows": 10,
    "sst": 1,
    "sse": 0.5,
}


@pytest.mark.parametrize(
    ("changes", "documents", "measure", "reason"),
    [
        (
            {"zero": 20},
            2,
            "recovered_share",
            "zeros in place of x do no harm (loss 2.0000 against 3.0000",
        ),
        ({"mean": 20}, 2, "recovered_share_of_mean", "the mean in place of x does no harm (loss 2.0000"),
        ({}, 1, "patched_loss", "and there is only one"),
        (
            dict.fromkeys(("predictions", "clean", "patched", "zero", "mean"), 0),
            2,
            "zero_loss",
            "has a next token",
        ),
        (
            dict.fromkeys(("predictions", "clean", "patched", "zero", "mean"), 0),
            2,
            "recovered_share",
            "next token",
        ),
        ({"sst": 0}, 2, "explained_variance", "the same in all rows"),
    ],
)
def test_a_value_that_is_missing_has_its_reason(changes, documents, measure, reason):
    shards = pl.DataFrame([shard_of("a", [ONE | changes] * documents)], schema=FIDELITY_SHARDS)
    table = summary(shards, 4)
    message = reasons(table)
    assert reason in message[measure]
    missing = table.filter(pl.col("value").is_null() | pl.col("low").is_null())["measure"].to_list()
    assert list(message) == missing
