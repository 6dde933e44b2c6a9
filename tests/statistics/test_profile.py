"""What a feature fires on, at the edges: in every row, in one, in none; documents without a counted row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy import stats

from pipeline.statistics.documents.clustered import DocumentTotals, document_rows, document_totals
from pipeline.statistics.documents.document_groups import Grouping, Label
from pipeline.statistics.profile.profile import Profiler, ShardRows, with_q
from schemas.tables.tables import LABELS
from tests.fixtures.tokens import Made, shard_around

ROWS, EVERYWHERE, ONCE, NEVER = 64, 0, 1, 2


@pytest.fixture(scope="module")
def made() -> Made:
    """Documents of 8 rows in contexts of 16; document 2 is not counted; tokens 5, 6, 7, 5, 6, 7 …"""
    shard = shard_around(np.zeros((ROWS, 3), np.float32), context=16, document=8)
    shard.tokens.counted[16:24] = False
    shard.dense[shard.tokens.counted, EVERYWHERE] = -2
    shard.dense[33, ONCE] = 1
    tokens = replace(shard.tokens, token_ids=(5 + np.arange(ROWS) % 3).astype(np.int32))
    return Made(tokens, shard.dense)


def profiler(made: Made, labels: list[str | None]) -> Profiler:
    """`labels` of the eight documents; 'a' and 'b' have groups."""
    documents = pl.DataFrame({"document": made.tokens.document[::8], "kind": labels})
    rows = document_rows(made.tokens)[1]
    totals = [
        DocumentTotals(len(n), int(n.sum()), int((n**2).sum()))
        for n in (
            rows[[label == kind and n > 0 for label, n in zip(labels, rows, strict=True)]] for kind in "abx"
        )
    ]
    grouping = Grouping(document_totals(made.tokens), (Label("kind", ("a", "b"), tuple(totals)),))
    result = Profiler(range(3), grouping)
    result.add(made.postings, ShardRows.of(made.tokens, grouping, documents))
    return result


def test_a_feature_of_every_row_one_of_a_single_row_and_one_of_none(made: Made) -> None:
    table = profiler(made, ["a"] * 8).profile()
    everywhere, once, never = table.iter_rows(named=True)
    counted = made.tokens.counted
    bound = 1 - 0.05 ** (1 / 7)  # seven documents of equal size
    assert (everywhere["frequency_low"], everywhere["frequency_high"]) == (pytest.approx(1 - bound), 1)
    assert (everywhere["frequency_se"], everywhere["dead_upper"]) == (None, None)
    assert (everywhere["first_context"], everywhere["last_context"]) == (0, 3)
    counts = np.unique(made.tokens.token_ids[counted], return_counts=True)[1]
    assert everywhere["token_entropy_bits"] == pytest.approx(stats.entropy(counts, base=2))
    assert everywhere["first_positions_share"] == (counted.reshape(4, 16)[:, :2].sum() / counted.sum())
    assert (once["top_token"], once["top_token_share"], once["tokens"]) == (5, 1.0, 1)
    assert (once["token_entropy_bits"], once["position_entropy_bits"]) == (0, 0)
    assert (once["first_context"], once["last_context"], once["first_positions_share"]) == (2, 2, 1.0)
    assert once["frequency_low"] < 1 / 56 < once["frequency_high"]
    assert never["dead_upper"] == pytest.approx(bound)
    assert never["dead_upper_rows"] == pytest.approx(1 - 0.05 ** (1 / 56))
    assert (never["tokens"], never["top_token"]) == (0, None)


def test_values_without_a_group_are_elsewhere_and_documents_without_a_value_nowhere(made: Made) -> None:
    labels = profiler(made, ["a", "b", "a", "a", "x", None, "b", None]).labels()
    assert dict(labels.schema) == LABELS
    result = {(row["feature"], row["value"]): row for row in labels.iter_rows(named=True)}
    assert set(result) == {(EVERYWHERE, "a"), (EVERYWHERE, "b")}  # row 33 is of the document of kind x
    assert result[EVERYWHERE, "a"]["rows"] == 16  # the third document is not counted
    assert result[EVERYWHERE, "a"]["mean_all"] == -2
    assert result[EVERYWHERE, "b"]["difference"] == 0


def test_a_value_that_all_documents_have_is_compared_with_nothing(made: Made) -> None:
    labels = profiler(made, ["a"] * 8).labels()
    assert labels.filter(feature=EVERYWHERE).select("value", "frequency", "difference", "p").rows() == [
        ("a", 1.0, None, None)
    ]


def test_documents_and_labels_that_differ_are_a_fault_of_ours(made: Made) -> None:
    documents = pl.DataFrame({"document": made.tokens.document[:8]})
    with pytest.raises(AssertionError, match="documents and their labels differ"):
        ShardRows.of(made.tokens, Grouping(DocumentTotals()), documents)


def test_q_is_benjamini_and_hochbergs_of_each_value_ties_and_nulls_too() -> None:
    rng = np.random.default_rng(0)
    p = np.round(rng.random(400), 2)
    p[rng.random(400) < 0.3] = np.nan
    value = rng.choice(["a", "b", "c"], 400)
    table = pl.DataFrame(
        {"feature": np.arange(400), "label": "kind", "value": value, "p": p, "q": None}, nan_to_null=True
    )
    rest = {name: pl.lit(None) for name in LABELS if name not in table.columns}
    result = with_q(table.with_columns(**rest).select(*LABELS).cast(LABELS))  # type: ignore[arg-type]
    assert result["feature"].to_list() == list(range(400))
    for kind in "abc":
        some = result.filter(value=kind).drop_nulls("p")
        expected = stats.false_discovery_control(some["p"].to_numpy())
        np.testing.assert_allclose(some["q"], expected, rtol=1e-12)
    assert result.filter(pl.col("p").is_null())["q"].is_null().all()
