"""What the benchmarks run over: a random GPT-2 of a given shape, random words, and random SAEs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors.numpy import save_file

from jobs.lake.tokenize import tokenize_resolved
from pipeline.plans.plan import agree_on_plan, make_plan, resolve
from pipeline.store.records.tokens import require_lake
from schemas.layout import Layout
from schemas.records import Lake, Plan
from schemas.run.file import RunFile, parse_run_file

VOCABULARY = 5_000
CONTEXT = 128
CUT = 3.01
"""Of unit normal pre-activations, 32 of 24,576 are above this."""


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
    vocabulary: int = VOCABULARY
    """Of the model; texts use the first VOCABULARY words."""

    @property
    def hook(self) -> str:
        """Where the SAE reads."""
        return f"blocks.{self.hook_layer}.hook_resid_post"


def write_inputs(shape: Shape, folder: Path, threads: int, shards: int) -> tuple[RunFile, Layout, Lake, Plan]:
    """A random corpus, tokenizer, model and SAE of this shape; the run file over them, and a lake of it."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    rng = np.random.default_rng(0)
    words = rng.integers(0, VOCABULARY - 3, (shape.tokens // CONTEXT, CONTEXT - 2))
    documents = [" ".join(f"w{word}" for word in row) for row in words]
    groups = [f"g{n % 4}" for n in range(len(documents))]
    pl.DataFrame({"text": documents, "group": groups}).write_parquet(folder / "corpus.parquet")
    write_tokenizer(folder / "model")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=shape.vocabulary,
        n_embd=shape.d_model,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_positions=CONTEXT,
    )
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    write_sae(folder / "sae", "topk", shape.d_model, shape.d_sae, shape.k, shape.hook)
    content = {
        "corpus": {"path": str(folder / "corpus.parquet"), "label_columns": ["group"]},
        "tokens": {"context_size": CONTEXT, "shard_tokens": shape.tokens // shards},
        "model": {"path": str(folder / "model")},
        "sites": [{"name": "bench", "sae": str(folder / "sae")}],
        "store": {"root": str(folder / "store")},
        "extract": {
            "executor": "in_process",
            "cpus_per_worker": threads,
            "batch_contexts": 8,
            "check_sae": "off",
        },
    }
    run_file = resolve(parse_run_file(content, "bench"))[0]
    tokenize_resolved(run_file)
    layout = Layout(Path(run_file.store.root))
    lake = require_lake(layout)
    return run_file, layout, lake, agree_on_plan(layout, make_plan(run_file, lake))


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


def write_sae(
    folder: Path, architecture: str, d_model: int, d_sae: int, k: int = 32, hook: str | None = None
) -> None:
    """A random SAE in SAELens' format, of which about 32 in 24,576 features are active on a unit normal x."""
    rng = np.random.default_rng(0)
    encoder = rng.standard_normal((d_model, d_sae), dtype=np.float32) / d_model**0.5
    decoder = {"W_dec": np.ascontiguousarray(encoder.T), "b_dec": np.zeros(d_model, np.float32)}
    zeros = np.zeros(d_sae, np.float32)
    biases = {
        "topk": {"b_enc": zeros},
        "jumprelu": {"b_enc": zeros, "threshold": zeros + np.float32(CUT)},
        "standard": {"b_enc": zeros - np.float32(CUT)},
        "gated": {"b_gate": zeros - np.float32(CUT), "b_mag": zeros, "r_mag": zeros},
    }[architecture]
    folder.mkdir()
    save_file({"W_enc": encoder, **decoder, **biases}, folder / "sae_weights.safetensors")
    metadata = {
        "hook_name": hook,
        "prepend_bos": True,
        "context_size": CONTEXT,
        "sae_lens_version": "6.0.0",
    }
    config: dict[str, Any] = {"architecture": architecture, "d_in": d_model, "d_sae": d_sae}
    config |= {"dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True, "metadata": metadata}
    config |= {"k": k} if architecture == "topk" else {}
    (folder / "cfg.json").write_text(json.dumps(config))
