"""The memory of a worker does not grow with the number of shards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.bench import memory
from jobs.bench.inputs import write_sae
from pipeline.store import FeatureStore
from tests.fixtures.runs import run_content, write_corpus

ROOT = Path(__file__).parents[2]


def peaks(folder, documents):
    """Peak resident memory after each shard of a run in a process of its own."""
    folder.mkdir()
    write_corpus(folder / "corpus.parquet", documents)
    from tests.kit import write_tiny_tokenizer

    write_tiny_tokenizer(folder / "tokenizer")
    content = run_content(folder, tokens={"shard_tokens": 2_000})
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    for command in ("tokenize", "extract"):
        subprocess.run(
            [sys.executable, "-m", "jobs", command, str(path)], cwd=ROOT, check=True, capture_output=True
        )
    return [
        receipt.peak_rss_bytes for receipt in FeatureStore.open(folder / "store").receipts("mid").values()
    ]


@pytest.mark.slow
def test_64_shards_peak_no_higher_than_8(tmp_path):
    many = peaks(tmp_path / "many", 2_100)
    few = peaks(tmp_path / "few", 270)
    assert len(few) >= 8
    assert len(many) >= 64
    assert many[-1] <= 1.05 * few[-1]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_a_million_features_are_encoded_in_a_few_hundred_megabytes(tmp_path, architecture):
    write_sae(tmp_path / "sae", architecture, 16, 1_048_576, k=32)
    result = memory.measure(tmp_path / "sae", rows=1_024, threads=2)
    assert result.nnz >= 1_024 * 32
    assert result.above < 1.5
