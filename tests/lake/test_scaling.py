"""The counts that docs/scaling.md computes with, on real stores."""

from __future__ import annotations

import pytest

from jobs.lake.extract import extract
from jobs.lake.tokenize import tokenize
from pipeline.store import FeatureStore
from pipeline.store.formats import csr
from pipeline.tokens.tokenize import _SHARD_TOKENS
from schemas.layout import Layout
from tests.fixtures.runs import run_file


@pytest.mark.parametrize(
    ("layouts", "chunk"), [(["token_major", "feature_major"], 1000), (["feature_major"], 1)]
)
def test_a_shard_is_as_many_objects_as_the_formula_says(tmp_path, monkeypatch, layouts, chunk):
    monkeypatch.setattr(csr, "_CHUNK", chunk)
    run = run_file(tmp_path, store={"layouts": layouts})
    tokenize(run)
    extract(run)
    store = FeatureStore.open(run.store.root)
    for record in store.shards:
        receipt = store.receipts("mid")[record.name]
        folder = store.layout.attempt("mid", record.name, receipt.attempt)
        result = sum(path.is_file() for path in folder.rglob("*"))
        chunks = 2 * -(-receipt.sites["mid"].nnz // chunk) - (-(record.rows + 1) // chunk)
        assert result == 3 + (4 + chunks if "token_major" in layouts else 0)


def test_the_constants_of_the_arithmetic_are_those_of_the_code():
    assert csr._CHUNK == 1 << 22
    assert _SHARD_TOKENS[1] == 1 << 19
    names = [Layout.shard_name(None, number) for number in (0, 999_999, 1_000_000)]
    assert names[0] < names[1]
    assert names[2] < names[1]  # a million shards is where names stop to sort as numbers
