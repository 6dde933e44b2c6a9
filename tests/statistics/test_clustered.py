"""Sums over documents and the variance clustered by document, against loops over documents and rows."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from pipeline.statistics.documents import clustered
from pipeline.statistics.documents.clustered import (
    CHANGES,
    SUMS,
    DocumentSums,
    DocumentTotals,
    document_changes,
    document_sums,
    document_totals,
)
from tests.fixtures.tokens import Made, as_one, made_shards, postings_of

D_SAE = 12
SIZES = (60, 3, 200, 91)


def added(shards: list[Made], d_sae: int = D_SAE) -> DocumentSums:
    sums = DocumentSums(d_sae)
    for made in shards:
        sums.add(document_sums(made.postings, made.tokens), document_totals(made.tokens))
    return sums


def by_document(shards: list[Made], feature: int) -> tuple[list[int], list[int], list[float]]:
    """Counted rows, active rows and sum of activations of every document with a counted row."""
    whole = as_one(shards)
    n, active, total = [], [], []
    for document in np.unique(whole.tokens.document):
        rows = np.flatnonzero((whole.tokens.document == document) & whole.tokens.counted)
        if len(rows):
            values = whole.dense[rows, feature].astype(np.float64)
            n.append(len(rows))
            active.append(int((values != 0).sum()))
            total.append(float(values.sum()))
    return n, active, total


@pytest.mark.parametrize("signed", [False, True])
def test_sums_are_those_of_a_loop_over_documents(signed: bool) -> None:
    shards = made_shards(SIZES, signed=signed)
    sums = added(shards)
    for feature in range(D_SAE):
        n, active, total = (np.array(column) for column in by_document(shards, feature))
        result = {name: column[feature] for name, column in sums.columns.items()}
        assert result["documents"] == (active > 0).sum()
        assert result["active"] == active.sum()
        assert result["active_squared"] == (active**2).sum()
        assert result["active_rows"] == (active * n).sum()
        assert result["total"] == pytest.approx(total.sum(), rel=1e-12, abs=1e-12)
        assert result["total_squared"] == pytest.approx((total**2).sum(), rel=1e-12)
        assert result["total_rows"] == pytest.approx((total * n).sum(), rel=1e-12, abs=1e-12)
        assert sums.totals == DocumentTotals(len(n), int(n.sum()), int((n**2).sum()))


def test_the_variance_is_the_sandwich_of_a_mean_clustered_by_document() -> None:
    """Row by row: residuals of the mean, added up in each document; D / (D - 1), as one parameter asks."""
    shards = made_shards(SIZES)
    whole = as_one(shards)
    counted = whole.tokens.counted
    documents = whole.tokens.document[counted]
    sums = added(shards)
    for feature in range(D_SAE - 2):
        values = whole.dense[counted, feature].astype(np.float64)
        for measure, y in (("active", (values != 0).astype(np.float64)), ("total", values)):
            scores = [float((y - y.mean())[documents == d].sum()) for d in np.unique(documents)]
            d = len(scores)
            expected = d / (d - 1) * sum(score**2 for score in scores) / len(y) ** 2
            estimate = sums.estimate(measure)
            assert estimate.p[feature] == pytest.approx(y.mean(), rel=1e-12)
            assert estimate.variance()[feature] == pytest.approx(expected, rel=1e-9)


def test_documents_of_one_row_have_the_variance_of_a_mean() -> None:
    values = np.random.default_rng(0).exponential(size=50)
    one = np.ones(1, np.float64)
    sums = DocumentSums(1)
    for value in values:
        shard = {"active": 1, "active_squared": 1, "active_rows": 1, "documents": 1}
        totals = {"total": value, "total_squared": value**2, "total_rows": value}
        frame = pl.DataFrame({"feature": [0], **shard, **totals}, schema={"feature": pl.UInt32()} | SUMS)
        sums.add(frame, DocumentTotals(1, 1, 1))
    assert sums.estimate("total").variance() == pytest.approx(one * values.var(ddof=1) / 50)
    assert sums.estimate("active").variance() == pytest.approx(0 * one)


def test_shards_add_up_to_the_whole_and_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    shards = made_shards(SIZES)
    whole, parts = as_one(shards), added(shards)
    once = added([whole])
    for name, column in once.columns.items():
        np.testing.assert_allclose(parts.columns[name], column, rtol=1e-13)
    assert parts.totals == once.totals
    frame = document_sums(whole.postings, whole.tokens)
    monkeypatch.setattr(clustered, "BLOCK_NNZ", 7)
    assert document_sums(whole.postings, whole.tokens).equals(frame)
    assert frame.schema == pl.Schema({"feature": pl.UInt32()} | SUMS)


def test_a_document_is_distinguished_from_the_next_features() -> None:
    """Feature 0 ends in the document in which feature 1 begins."""
    dense = np.zeros((22, 2), np.float32)
    dense[[3, 12, 13], 0] = 2
    dense[[12, 21], 1] = 3
    made = Made(made_shards((22,))[0].tokens, dense)
    made.tokens.counted[:] = True
    result = document_sums(made.postings, made.tokens)
    assert result["documents"].to_list() == [2, 1]
    assert result["active_squared"].to_list() == [1 + 4, 4]
    assert result["total_squared"].to_list() == [4 + 16, 36]


def test_a_shard_without_activations_or_rows_adds_its_documents_alone() -> None:
    for size in (0, 40):
        made = made_shards((size,))[0]
        nothing = Made(made.tokens, np.zeros_like(made.dense))
        assert document_sums(nothing.postings, made.tokens).height == 0
        assert document_changes(nothing.postings, nothing.postings, made.tokens).height == 0
        assert document_totals(made.tokens).rows == int(made.tokens.counted.sum())


def changed(dense: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Other activations over the same rows: some gone, some new, some of another strength."""
    rng = np.random.default_rng(seed)
    other = dense * (rng.random(dense.shape) > 0.2) * rng.choice([1.0, 1.5], dense.shape)
    return other.astype(np.float32)


@pytest.mark.parametrize("block", [7, 1 << 21])
def test_changes_are_those_of_a_loop_over_documents(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustered, "BLOCK_NNZ", block)
    before = made_shards(SIZES)
    after = [Made(made.tokens, changed(made.dense, n)) for n, made in enumerate(before)]
    after[0].dense[:, 3] = 0  # a feature of one side alone
    before[0].dense[:, 4] = 0
    sums = DocumentSums(D_SAE, CHANGES)
    for a, b in zip(before, after, strict=True):
        sums.add(
            document_changes(postings_of(a.dense), postings_of(b.dense), a.tokens), document_totals(a.tokens)
        )
    for feature in range(D_SAE):
        (_, *one), (_, *two) = (by_document(shards, feature) for shards in (before, after))
        for measure, x, y in zip(("active", "total"), one, two, strict=True):
            change = np.array(y) - np.array(x)
            assert sums.columns[f"{measure}_changed"][feature] == (change != 0).sum()
            squared = sums.columns[f"{measure}_change_squared"][feature]
            assert squared == pytest.approx((change**2).sum(), rel=1e-12)


def test_one_document_has_no_variance() -> None:
    made = made_shards((9,))[0]
    assert np.isnan(added([made]).estimate("active").variance()).all()
