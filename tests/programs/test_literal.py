"""The numbers of a store are those of the GPT-2 notebook, computed densely on the same contexts."""

from __future__ import annotations

import os

import pytest

from tests.programs.literal import Setting, run

pytestmark = pytest.mark.slow

FULL = Setting(contexts=2000, context_size=128, layer=9, d_sae=1024)


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    setting = FULL if os.environ.get("LATENTLAKE_LITERAL") == "full" else Setting()
    return {line.what: line for line in run(tmp_path_factory.mktemp("literal"), setting)}


def test_every_number_agrees(lines):
    assert [line for line in lines.values() if not line.deviation <= line.allowed] == []


def test_nothing_was_left_out(lines):
    assert len(lines) == 36
    for part in ("frequency", "ranking by sigma_over_mu", "top 30 rows that are others"):
        assert lines[part].n > 100
    assert lines["control: active rows, beyond near-ties"].n == lines["frequency"].n


def test_there_are_dead_features_to_disagree_on(lines):
    assert lines["sigma_over_mu, with ddof 1"].n < lines["frequency"].n
