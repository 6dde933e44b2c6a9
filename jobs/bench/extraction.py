"""`make bench`: extraction against a bare forward, as a ratio measured in one process.

Bare is the forward to the hook plus one dense matmul x @ W_enc with nothing kept: what any SAE analysis
pays. Shards of bare and of extraction (both layouts, statistics, checksums and commit written) take turns, so
that a machine whose speed drifts hurts both alike. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.table import Table

from jobs.console import console
from jobs.tokenize import tokenize_resolved
from pipeline.plan import agree_on_plan, make_plan, resolve
from pipeline.store import FeatureStore
from pipeline.store.tokens import read_lake, read_links, read_token_shard
from schemas.layout import Layout
from schemas.run_file import RunFile, parse_run_file
from schemas.values import TokenShard

VOCABULARY = 5_000
CONTEXT = 128


@dataclass(frozen=True)
class Shape:
    """One case: a random GPT-2 of this shape, and a TopK SAE on its last block needed."""

    name: str
    layers: int
    d_model: int
    heads: int
    hook_layer: int
    d_sae: int
    k: int
    tokens: int
    target: float


SHAPES = (
    Shape("GPT-2 small, d_sae 24,576, k 32", 12, 768, 12, 7, 24_576, 32, 32_768, 0.95),
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


def main() -> None:
    """Measure each shape and write bench.json and bench.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shards", type=int, default=8)
    arguments = parser.parse_args()
    results = []
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(shape, Path(folder), arguments.threads, arguments.shards))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "bench.json").write_text(json.dumps([asdict(result) for result in results], indent=1))
    (arguments.out / "bench.md").write_text(markdown(results))
    console.print(table_of(results))


def measure(shape: Shape, folder: Path, threads: int, shards: int) -> Result:
    """Bare and extraction on the same shards, in turn; the first shard warms both up and is not counted."""
    from pipeline.models import load_model
    from pipeline.saes import load_sae
    from pipeline.worker import Worker

    run = write_inputs(shape, folder, threads, shards)
    layout = Layout(Path(run.store.root))
    tokenize_resolved(run)
    lake = read_lake(layout)
    assert lake is not None
    plan = agree_on_plan(layout, make_plan(run, lake))
    hook = plan.sites[0].hook_name
    model = load_model(run.model, [hook], device="cpu", threads=threads)
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
        nnz += sum(site.nnz for site in receipt.sites.values())
        size += sum(item.bytes for item in receipt.objects)
        console.print(
            f"  {shape.name}: shard {record.name}, {seconds['bare'][-1] / seconds['extraction'][-1]:.3f}"
        )
    return result_of(shape, seconds, size / nnz, *query_times(layout.root))


def bare(model: Any, hook: str, w_enc: np.ndarray[Any, Any], shard: TokenShard, batch_contexts: int) -> None:
    """The forward to the hook and one dense matmul, nothing kept."""
    import torch

    from pipeline.worker import batches

    weight = torch.from_numpy(w_enc)
    with torch.inference_mode():
        for batch, _ in batches(shard, batch_contexts):
            model.forward(batch)[hook] @ weight


def query_times(root: Path, features: int = 50) -> tuple[float, float]:
    """Median milliseconds of the top 20 contexts, and of the top 1,000 of one label, after a first query."""
    store = FeatureStore.open(root)
    asked = np.random.default_rng(0).integers(0, store.sites["bench"].d_sae, features).tolist()
    label = pl.col("group") == "g1"
    store.contexts("bench", asked[0], 20, where=label)
    top_20 = [milliseconds(partial(store.contexts, "bench", f, 20)) for f in asked]
    top_1000 = [milliseconds(partial(store.contexts, "bench", f, 1_000, where=label)) for f in asked]
    return statistics.median(top_20), statistics.median(top_1000)


def milliseconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def result_of(
    shape: Shape,
    seconds: dict[str, list[float]],
    bytes_per_nonzero: float,
    top_20_ms: float,
    top_1000_by_label_ms: float,
) -> Result:
    """Rates over all shards but the first."""
    slow, fast = seconds["extraction"][1:], seconds["bare"][1:]
    ratios = [b / e for b, e in zip(fast, slow, strict=True)]
    return Result(
        name=shape.name,
        tokens=shape.tokens,
        bare=1 / statistics.mean(fast),
        extraction=1 / statistics.mean(slow),
        ratio=sum(fast) / sum(slow),
        lowest=min(ratios),
        highest=max(ratios),
        bytes_per_nonzero=bytes_per_nonzero,
        top_20_ms=top_20_ms,
        top_1000_by_label_ms=top_1000_by_label_ms,
        target=shape.target,
    )


def write_inputs(shape: Shape, folder: Path, threads: int, shards: int) -> RunFile:
    """A random corpus, tokenizer, model and SAE of this shape, and the run file over them."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, VOCABULARY - 3, (shape.tokens // CONTEXT, CONTEXT - 2))
    documents = [" ".join(f"w{word}" for word in row) for row in words]
    groups = [f"g{n % 4}" for n in range(len(documents))]
    pl.DataFrame({"text": documents, "group": groups}).write_parquet(folder / "corpus.parquet")
    write_tokenizer(folder / "model")
    write_model(shape, folder / "model")
    write_sae(shape, folder / "sae", rng)
    content = {
        "corpus": {"path": str(folder / "corpus.parquet"), "label_columns": ["group"]},
        "tokens": {"context_size": CONTEXT, "shard_tokens": shape.tokens // shards},
        "model": {"path": str(folder / "model")},
        "sites": [{"name": "bench", "sae": str(folder / "sae")}],
        "store": {"root": str(folder / "store")},
        "extract": {"executor": "in_process", "cpus_per_worker": threads, "batch_contexts": 8},
    }
    return resolve(parse_run_file(content, "bench"))[0]


def write_tokenizer(folder: Path) -> None:
    """Words w0, w1 ... of the vocabulary, with BOS and EOS."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    entries = ["<bos>", "<eos>", "<unk>", *(f"w{n}" for n in range(VOCABULARY - 3))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(entries)}, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def write_model(shape: Shape, folder: Path) -> None:
    """A random GPT-2 of this shape."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=shape.d_model,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_positions=CONTEXT,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)


def write_sae(shape: Shape, folder: Path, rng: np.random.Generator) -> None:
    """A random TopK SAE in SAELens' format."""
    from safetensors.numpy import save_file

    folder.mkdir()
    encoder = rng.standard_normal((shape.d_model, shape.d_sae), dtype=np.float32) / shape.d_model**0.5
    weights = {
        "W_enc": encoder,
        "W_dec": np.ascontiguousarray(encoder.T),
        "b_enc": np.zeros(shape.d_sae, np.float32),
        "b_dec": np.zeros(shape.d_model, np.float32),
    }
    save_file(weights, folder / "sae_weights.safetensors")
    hook = f"blocks.{shape.hook_layer}.hook_resid_post"
    metadata = {"hook_name": hook, "prepend_bos": True, "context_size": CONTEXT, "sae_lens_version": "6.0.0"}
    config = {"architecture": "topk", "d_in": shape.d_model, "d_sae": shape.d_sae, "k": shape.k}
    config |= {"dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True, "metadata": metadata}
    (folder / "cfg.json").write_text(json.dumps(config))


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


def cells(r: Result) -> list[str]:
    """One result as text, by COLUMNS."""
    ratio = f"{r.ratio:.3f} ({r.lowest:.3f} to {r.highest:.3f})"
    rates = [f"{r.tokens:,}", f"{r.bare:,.0f}", f"{r.extraction:,.0f}", ratio, f"{r.target:.2f}"]
    return [
        r.name,
        *rates,
        f"{r.bytes_per_nonzero:.2f}",
        f"{r.top_20_ms:.1f}",
        f"{r.top_1000_by_label_ms:.1f}",
    ]


def table_of(results: list[Result]) -> Table:
    """The results for people."""
    table = Table(title="extraction / bare")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "shape" else "right")
    for result in results:
        table.add_row(*cells(result))
    return table


def markdown(results: list[Result]) -> str:
    """The same as a Markdown table."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(cells, results)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
