"""A whole extraction against what others offer: same model, SAE, tokens and threads; in turn, by shard.

delphi: `LatentCache.run` and `save_splits` of EleutherAI's delphi (`eai-delphi`, installed aside by `make
bench`), which runs the model to its end and keeps dense features only for a batch; its SAE is a function that
gives these, written as delphi's own `sae_dense_latents` does it. loop: what people write themselves,
TransformerLens' run_with_cache to the hook, SAELens' encode, and sums for frequency, mean and variance,
nothing stored. Ours writes both layouts, statistics, checksums and the commit.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench.encode import ratio_text, saelens
from jobs.bench.inputs import Shape, write_inputs
from jobs.bench.report import Section, rate, ratio, seconds_of
from jobs.terminal.console import console
from pipeline.store.records.tokens import read_links, read_token_shard
from schemas.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SHAPE = Shape("GPT-2 small, d_sae 24,576, k 32", 12, 768, 12, 7, 24_576, 32, 20_480, 0, 50_257)
SHARDS = 5
SPLITS = 5
"""Files of delphi's store, its default."""

TARGETS = {"delphi": 2.0, "loop": 1.2}


@dataclass(frozen=True)
class Result:
    """Tokens a second by the median shard; ratios are of summed seconds, with the range over shards."""

    shape: str
    extraction: float
    delphi: float
    loop: float
    over_delphi: tuple[float, float, float]
    over_loop: tuple[float, float, float]


def run(folder: Path, threads: int) -> Section:
    """Measure on a GPT-2-small shape."""
    result = measure(SHAPE, folder, threads, SHARDS)
    title = f"whole extraction, {SHAPE.name}, {threads} threads (tokens a second)"
    columns = ("", "tokens a second", "extraction / it", "target")
    rows = [
        ["extraction, stored", f"{result.extraction:,.0f}", "", ""],
        ["delphi, stored", f"{result.delphi:,.0f}", ratio_text(result.over_delphi), f"{TARGETS['delphi']}"],
        ["loop, sums only", f"{result.loop:,.0f}", ratio_text(result.over_loop), f"{TARGETS['loop']}"],
    ]
    return Section("peers", title, columns, rows, [asdict(result)])


def measure(shape: Shape, folder: Path, threads: int, shards: int) -> Result:
    """Every shard by each of the three; the first warms up and is not counted."""
    import torch

    from pipeline.worker import Worker

    _, layout, lake, plan = write_inputs(shape, folder, threads, shards)
    worker = Worker(layout.root, plan)
    worker.setup()
    others = {name: make(shape, folder, plan.batch_contexts) for name, make in OTHERS.items()}
    seconds: dict[str, list[float]] = {"extraction": [], **{name: [] for name in others}}
    for record in read_links(layout)[0].shards:
        shard = read_token_shard(layout, lake, record)
        tokens = torch.tensor(shard.token_ids.reshape(shard.n_contexts, -1), dtype=torch.int64)
        calls: dict[str, Callable[[], object]] = {"extraction": partial(worker.process, record.name)}
        calls |= {name: partial(work, tokens) for name, work in others.items()}
        for name, call in calls.items():
            seconds[name].append(seconds_of(call) / shard.n_rows)
        rates = ", ".join(f"{name} {1 / values[-1]:,.0f}" for name, values in seconds.items())
        console.print(f"  shard {record.name}: {rates}")
    # the first shard warmed all of them up
    seconds = {name: values[1:] for name, values in seconds.items()}
    return Result(
        shape.name,
        extraction=rate(1, seconds["extraction"]),
        delphi=rate(1, seconds["delphi"]),
        loop=rate(1, seconds["loop"]),
        over_delphi=ratio(seconds["delphi"], seconds["extraction"]),
        over_loop=ratio(seconds["loop"], seconds["extraction"]),
    )


def delphi(shape: Shape, folder: Path, batch_contexts: int) -> Callable[[Tensor], object]:
    """Cache and save contexts [C, T]."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        package = importlib.import_module("delphi")
    except ImportError:
        raise InputError(
            "the benchmark against delphi needs eai-delphi: run it by `make bench`, which installs that aside"
        ) from None
    # an empty module in its place keeps the __init__ of delphi.latents, which needs serving libraries, from
    # running
    latents = types.ModuleType("delphi.latents")
    latents.__path__ = [str(Path(package.__path__[0]) / "latents")]
    sys.modules["delphi.latents"] = latents
    cache_of = importlib.import_module("delphi.latents.cache").LatentCache
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    hook = f"transformer.h.{shape.hook_layer}"
    encode = dense_topk(folder / "sae", shape.k)

    def work(tokens: Tensor) -> None:
        cache = cache_of(model, {hook: encode}, batch_size=batch_contexts)
        cache.run(tokens.numel(), tokens)
        cache.save_splits(SPLITS, folder / "delphi")

    return work


def dense_topk(folder: Path, k: int) -> Callable[[Tensor], Tensor]:
    """Dense features [B, T, F] of x [B, T, D]: linear, ReLU, top k, scattered into zeros."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(folder / "sae_weights.safetensors")
    encoder = weights["W_enc"].T.contiguous()

    def encode(x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]) - weights["b_dec"]
        pre = torch.relu(torch.nn.functional.linear(rows, encoder, weights["b_enc"]))
        values, features = pre.topk(k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter_(-1, features, values).reshape(*x.shape[:-1], -1)

    return encode


def loop(shape: Shape, folder: Path, batch_contexts: int) -> Callable[[Tensor], object]:
    """Sums of features over contexts [C, T]."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    model: Any = TransformerBridge.boot_transformers(str(folder / "model"), device="cpu")
    sae = saelens(folder / "sae")

    def work(tokens: Tensor) -> list[Tensor]:
        sums = [torch.zeros(shape.d_sae) for _ in range(3)]
        with torch.no_grad():
            for batch in torch.split(tokens, batch_contexts):
                _, cache = model.run_with_cache(
                    batch, names_filter=[shape.hook], stop_at_layer=shape.hook_layer + 1
                )
                features = sae.encode(cache[shape.hook]).flatten(0, 1)
                for total, power in zip(sums, (features > 0, features, features**2), strict=True):
                    total += power.sum(dim=0)
        return sums

    return work


OTHERS: dict[str, Callable[[Shape, Path, int], Callable[[Tensor], object]]] = {"delphi": delphi, "loop": loop}
"""Name -> function of shape, folder of the inputs and batch, which gives what works on contexts [C, T]."""
