"""Extraction against a bare forward.

Bare is the forward to the hook plus one dense matmul x @ W_enc with nothing kept: what any SAE analysis
pays. Shards of bare and of extraction (both layouts, statistics, checksums and commit written) take turns.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from jobs.bench.inputs import Shape, write_inputs
from jobs.bench.report import Section, ratio, seconds_of
from jobs.terminal.console import console
from pipeline.store import FeatureStore
from pipeline.store.records.tokens import read_links, read_token_shard
from schemas.values import TokenShard

SHARDS, QUERIED = 8, 50
"""Shards of each shape, and features whose contexts are read."""

SHAPES = (
    Shape("GPT-2 small, d_sae 24,576, k 32", 12, 768, 12, 7, 24_576, 32, 32_768, 0.95, 50_257),
    Shape("4 layers, d 128, d_sae 4,096, k 32", 4, 128, 4, 3, 4_096, 32, 262_144, 0.80),
)


@dataclass(frozen=True)
class Result:
    """Rates in tokens a second, and extraction / bare: the ratio of the sums, and its range over shards."""

    name: str
    tokens: int
    bare: float
    extraction: float
    ratio: float
    lowest: float
    highest: float
    bytes_per_nonzero: float
    top_20_ms: float
    """Median over features of `FeatureStore.contexts(site, feature, 20)` in an open store."""
    top_1000_by_label_ms: float
    target: float


def run(folder: Path, threads: int) -> Section:
    """Measure each shape."""
    results = []
    for n, shape in enumerate(SHAPES):
        (folder / str(n)).mkdir()
        results.append(measure(shape, folder / str(n), threads, SHARDS))
    return section_of(results)


def measure(shape: Shape, folder: Path, threads: int, shards: int) -> Result:
    """Bare and extraction on the same shards, in turn; the first shard warms both up and is not counted."""
    from pipeline.models import load_model
    from pipeline.saes import load_sae
    from pipeline.worker import Worker

    run_file, layout, lake, plan = write_inputs(shape, folder, threads, shards)
    hook = plan.sites[0].hook_name
    model = load_model(run_file.model, [hook], device="cpu", threads=threads)
    w_enc = load_sae(plan.sites[0].sae).weights()["W_enc"]
    worker = Worker(layout.root, plan)
    worker.setup()
    seconds: dict[str, list[float]] = {"bare": [], "extraction": []}
    nnz = size = 0
    for record in read_links(layout)[0].shards:
        shard = read_token_shard(layout, lake, record)
        began = time.perf_counter()
        bare(model, hook, w_enc, shard, plan.batch_contexts)
        middle = time.perf_counter()
        receipt = worker.process(record.name)
        ended = time.perf_counter()
        seconds["bare"].append((middle - began) / shard.n_rows)
        seconds["extraction"].append((ended - middle) / shard.n_rows)
        nnz += receipt.nnz
        size += receipt.size
        console.print(
            f"  {shape.name}: shard {record.name}, {seconds['bare'][-1] / seconds['extraction'][-1]:.3f}"
        )
    # the first shard warmed both up
    slow, fast = seconds["extraction"][1:], seconds["bare"][1:]
    rates = 1 / statistics.mean(fast), 1 / statistics.mean(slow)
    # median milliseconds of the top 20 contexts, and of the top 1,000 of one label, after a first query
    store, label = FeatureStore.open(layout.root), pl.col("group") == "g1"
    drawn = np.random.default_rng(0).integers(0, store.sites["bench"].d_sae, QUERIED).tolist()
    store.contexts("bench", drawn[0], 20, where=label)
    top_20 = [seconds_of(partial(store.contexts, "bench", f, 20)) for f in drawn]
    top_1000 = [seconds_of(partial(store.contexts, "bench", f, 1_000, where=label)) for f in drawn]
    times = 1e3 * statistics.median(top_20), 1e3 * statistics.median(top_1000)
    measured = (*rates, *ratio(fast, slow), size / nnz, *times)
    return Result(shape.name, shape.tokens, *measured, target=shape.target)


def bare(model: Any, hook: str, w_enc: np.ndarray[Any, Any], shard: TokenShard, batch_contexts: int) -> None:
    """The forward to the hook and one dense matmul, nothing kept."""
    import torch

    from pipeline.tokens.batches import batches

    weight = torch.from_numpy(w_enc)
    with torch.inference_mode():
        for batch, _ in batches(shard, batch_contexts):
            model.forward(batch)[hook] @ weight


COLUMNS = (
    "shape",
    "tokens",
    "bare tok/s",
    "extraction tok/s",
    "ratio (range over shards)",
    "target",
    "B/nonzero",
    "top 20, ms",
    "top 1,000 by label, ms",
)


def section_of(results: list[Result]) -> Section:
    """The results as a table."""
    title = "extraction / bare (forward to the hook and one matmul, nothing kept)"
    rows = []
    for r in results:
        rates = [r.name, f"{r.tokens:,}", f"{r.bare:,.0f}", f"{r.extraction:,.0f}"]
        rates += [f"{r.ratio:.3f} ({r.lowest:.3f} to {r.highest:.3f})", f"{r.target:.2f}"]
        times = [f"{milliseconds:.1f}" for milliseconds in (r.top_20_ms, r.top_1000_by_label_ms)]
        rows.append([*rates, f"{r.bytes_per_nonzero:.2f}", *times])
    return Section("extraction", title, COLUMNS, rows, [asdict(r) for r in results])
