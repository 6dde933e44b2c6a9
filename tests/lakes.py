"""Small lakes for tests: a corpus of words, a tiny tokenizer, a seeded module, SAEs, and a run file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from jobs.lake.extract import extract
from jobs.lake.tokenize import tokenize
from jobs.tables.stats import stats
from pipeline.store import FeatureStore
from schemas.run.file import RunFile, parse_run_file
from tests.kit import write_sae, write_tiny_tokenizer

PARTIES = ("Whig", "Federalist", "Bull Moose")
DRAWN = {"jobs": ["stats", "rank", "cluster", "plots"]}
"""Figures take most of the time of a small run: the section `derive` of those that are about them."""


def write_corpus(path: Path, documents: int = 24, seed: int = 0) -> Path:
    """Documents of 5 to 120 words, with a year and a party."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 60, rng.integers(5, 120))) for _ in range(documents)]
    columns = {
        "text": texts,
        "year": [1900 + n for n in range(documents)],
        "party": [PARTIES[n % 3] for n in range(documents)],
    }
    pl.DataFrame(columns, schema_overrides={"year": pl.Int64}).write_parquet(path)
    return path


def run_content(folder: Path, architecture: str = "topk", **changes: dict[str, Any]) -> dict[str, Any]:
    """A run file over a small lake in `folder`; `changes` update its sections."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "corpus.parquet").exists():
        write_corpus(folder / "corpus.parquet")
        write_tiny_tokenizer(folder / "tokenizer")
    sae = folder / f"sae-{architecture}"
    if not sae.exists():
        write_sae(sae, architecture, d_sae=64, hook_name="layers.1", context_size=16)
    content: dict[str, Any] = {
        "corpus": {"path": str(folder / "corpus.parquet"), "label_columns": ["year", "party"]},
        "tokens": {"context_size": 16, "shard_tokens": 300, "tokenizer": str(folder / "tokenizer")},
        "model": {"loader": "torch_module", "path": "tests.kit:tiny_lm"},
        "sites": [{"name": "mid", "sae": str(sae)}],
        "store": {"root": str(folder / "store")},
        "extract": {
            "executor": "in_process",
            "cpus_per_worker": 1,
            "batch_contexts": 4,
            "check_sae": "off",  # their weights are random
        },
        "derive": {"jobs": ["stats", "rank", "cluster"]},
    }
    for section, values in changes.items():
        content[section] = values if section == "sites" else {**content.get(section, {}), **values}
    return content


def run_file(folder: Path, architecture: str = "topk", **changes: dict[str, Any]) -> RunFile:
    """`run_content`, checked."""
    return parse_run_file(run_content(folder, architecture, **changes), "run.yaml")


def extracted(run: RunFile, tables: bool = True) -> FeatureStore:
    """The store of a run without rankings, clusters and figures; with `tables` those of `stats`."""
    tokenize(run)
    extract(run)
    store = FeatureStore.open(run.store.root)
    for site in run.sites if tables else ():
        if site.sae is not None:
            stats(store, site.name)
    return store


def data_bytes(root: Path) -> dict[str, bytes]:
    """Every committed data object's bytes and every derived table's, by a path that names no attempt."""
    result: dict[str, bytes] = {}
    attempts = {json.loads(path.read_bytes())["attempt"] for path in root.glob("passes/*/commits/[!.]*.json")}
    for path in sorted((root / "passes").glob("*/data/*/*/*/**/*")):
        parts = path.relative_to(root / "passes").parts
        if path.is_file() and parts[3] in attempts:
            result["/".join(parts[:3] + parts[4:])] = path.read_bytes()
    for path in sorted((root / "tables").rglob("*.parquet")):
        result[str(path.relative_to(root))] = path.read_bytes()
    return result
