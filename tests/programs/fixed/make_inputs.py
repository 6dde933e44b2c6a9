"""Writes corpora, a tokenizer, a GPT-2, SAEs and run files into a folder; imports nothing of latentlake.

`tests.programs.compare_commits` gives one such folder to the code of two commits.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

WIDTH, FEATURES, WORDS = 16, 64, 61
PARTIES = ("Whig", "Federalist", "Bull Moose")
IN_PROCESS = {"executor": "in_process", "cpus_per_worker": 1, "batch_contexts": 4, "check_sae": "off"}
ON_RAY = IN_PROCESS | {"executor": "ray", "workers": 2}


def make_inputs(folder: Path) -> None:
    """Everything that the run files below name; run files have paths relative to this folder."""
    shutil.copyfile(Path(__file__).with_name("fixed_model.py"), folder / "fixed_model.py")
    write_texts(folder / "texts.parquet")
    write_prompts(folder / "prompts.parquet")
    write_images(folder / "images.npz")
    write_tokenizer(folder / "tokenizer")
    write_gpt2(folder / "gpt2")
    for name, architecture, hook, seed in (
        ("topk", "topk", "layers.1", 0),
        ("signed", "abstopk", "layers.0", 1),
        ("gated", "gated", "layers.1", 2),
        ("gpt2-standard", "standard", "blocks.1.hook_resid_post", 3),
        ("gpt2-jumprelu", "jumprelu", "blocks.1.hook_mlp_out", 4),
    ):
        write_sae(folder / f"sae-{name}", architecture, hook, seed)
    for name, content in run_files().items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def run_files() -> dict[str, dict[str, Any]]:
    """Name -> content of a run file."""
    texts = {"path": "texts.parquet", "label_columns": ["year", "party"]}
    tokens = {"context_size": 16, "shard_tokens": 300, "tokenizer": "tokenizer"}
    fixed = {"loader": "torch_module", "path": "fixed_model:build"}
    sites = [
        {"name": "mid", "sae": "sae-topk", "control": "random_encoder"},
        {"name": "signed", "sae": "sae-signed", "positions": [2, None], "control": "shuffled_rows"},
        {"name": "gated", "sae": "sae-gated"},
        {"name": "mean", "sae": "sae-topk", "pooling": "mean"},
        {"name": "x", "hook_name": "layers.2"},
    ]
    all_layouts = ["token_major", "feature_major", "dense"]
    jobs = ["stats", "examples", "profile", "rank", "coactivation", "cluster", "plots", "report"]
    gpt2 = [
        {"name": "resid", "sae": "sae-gpt2-standard"},
        {"name": "mlp", "sae": "sae-gpt2-jumprelu"},
    ]
    dictionary = {
        "features": 24,
        "width": 32,
        "documents": 200,
        "rows": 10,
        "probability": {"first": 0.25, "last": 0.05},
        "magnitude": {"first": 1.0, "last": 3.0},
        "correlated": [{"features": [4, 5], "correlation": 0.8}],
        "trees": [{"feature": 0, "children": [{"feature": 1}]}],
    }
    prompts = {"path": "prompts.parquet", "kind": "prompts", "label_columns": ["job"]}
    return {
        "texts": {
            "corpus": texts,
            "tokens": tokens,
            "model": fixed,
            "sites": sites,
            "store": {"root": "texts", "layouts": all_layouts},
            "extract": IN_PROCESS,
            "derive": {"jobs": jobs, "report": "top:20:n_active"},
        },
        "texts-on-ray": {
            "corpus": texts,
            "tokens": tokens,
            "model": fixed,
            "sites": sites,
            "store": {"root": "texts-on-ray", "layouts": all_layouts},
            "extract": ON_RAY,
            "derive": {"jobs": ["stats", "rank"]},
        },
        "gpt2": {
            "corpus": texts,
            "tokens": tokens,
            "model": {"path": "gpt2"},
            "sites": gpt2,
            "store": {"root": "gpt2-store", "activation_dtype": "float32"},
            "extract": IN_PROCESS,
            "derive": {"jobs": ["stats", "logits", "fidelity", "rank", "plots"]},
        },
        "prompts": {
            "corpus": prompts,
            "tokens": {"context_size": 24, "separator": "none", "tokenizer": "tokenizer"},
            "model": {"path": "gpt2"},
            "sites": [site | {"pooling": "last_token"} for site in gpt2],
            "store": {"root": "prompts"},
            "extract": IN_PROCESS,
            "derive": {"jobs": ["stats", "rank", "attribute", "plots"]},
        },
        "dictionary": {
            "corpus": {"kind": "dictionary", "dictionary": dictionary},
            "tokens": {"context_size": 10, "shard_tokens": 700},
            "model": {"loader": "inputs"},
            "sites": [{"name": "exact", "sae": "known/sae-0"}, {"name": "noisy", "sae": "known/sae-0.02"}],
            "store": {"root": "dictionary", "activation_dtype": "float32"},
            "extract": IN_PROCESS,
            "derive": {"jobs": ["stats", "profile", "rank", "plots"]},
        },
        "images": {
            "corpus": {"kind": "images", "path": "images.npz", "images": {"scrambled": True, "seed": 0}},
            "tokens": {"context_size": 1, "contexts": "document", "shard_tokens": 30},
            "model": {"loader": "image_classifier", "path": "digits/classifier"},
            "sites": [{"name": "hidden", "hook_name": "hidden", "sae": "digits/sae-rho0.1"}],
            "store": {"root": "images", "layouts": all_layouts},
            "extract": IN_PROCESS,
            "derive": {
                "jobs": ["stats", "examples", "profile", "rank", "importance", "images", "plots", "report"]
            },
        },
        "drawn": {
            "corpus": {"kind": "synthetic", "documents": 200, "tokens_per_document": 40},
            "tokens": {"context_size": 16, "shard_tokens": 3000},
            "model": {"loader": "synthetic"},
            "sites": [{"name": "drawn", "sae": "synthetic:d_sae=512,l0=8", "hook_name": "drawn"}],
            "store": {"root": "drawn"},
            "extract": IN_PROCESS,
            "derive": {"jobs": ["stats", "rank", "coactivation"]},
        },
    }


def write_texts(path: Path, documents: int = 24) -> None:
    """Documents of 5 to 120 words, with a year and a party."""
    rng = np.random.default_rng(0)
    texts = [
        " ".join(f"w{n}" for n in rng.integers(0, WORDS - 1, rng.integers(5, 120))) for _ in range(documents)
    ]
    parties = [PARTIES[n % 3] for n in range(documents)]
    pl.DataFrame(
        {"text": texts, "year": [1900 + n for n in range(documents)], "party": parties}
    ).write_parquet(path)


def write_prompts(path: Path, prompts: int = 12) -> None:
    """Prompts of 4 to 12 words, with a job and two answers of a word each."""
    rng = np.random.default_rng(1)
    texts = [
        " ".join(f"w{n}" for n in rng.integers(0, WORDS - 1, rng.integers(4, 12))) for _ in range(prompts)
    ]
    jobs = [("doctor", "nurse")[n % 2] for n in range(prompts)]
    pl.DataFrame({"text": texts, "job": jobs, "answer": "w1", "other": "w2"}).write_parquet(path)


def write_images(path: Path, side: int = 8, each: int = 20) -> None:
    """Bars across, bars down and squares of side 2 to 6, with noise."""
    rng, pixels = np.random.default_rng(2), np.zeros((3 * each, side, side))
    for number, image in enumerate(pixels):
        at = int(rng.integers(1, side - 3))
        here, along = slice(at, at + 2), slice(1, 7)
        image[[(here, along), (along, here), (slice(2, 6), slice(2, 6))][number % 3]] = rng.uniform(120, 255)
    pixels = np.clip(pixels + rng.uniform(0, 30, pixels.shape), 0, 255).astype(np.uint8)
    np.savez(path, image=pixels, label=np.array(["across", "down", "square"] * each))


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of the words w0 to w60, ids 3 to 63, behind <bos>, <eos> and <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    entries = ["<bos>", "<eos>", "<unk>", *(f"w{n}" for n in range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(entries)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)


def write_gpt2(folder: Path) -> None:
    """A random GPT-2 of three layers with that tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=WORDS + 3,
        n_embd=WIDTH,
        n_layer=3,
        n_head=2,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    model, generator = GPT2LMHeadModel(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    write_tokenizer(folder)


def write_sae(folder: Path, architecture: str, hook_name: str, seed: int) -> None:
    """A SAELens folder with seeded float32 weights."""
    from safetensors.numpy import save_file

    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": WIDTH,
        "d_sae": FEATURES,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.12", "hook_name": hook_name, "prepend_bos": True},
    }
    if architecture in ("topk", "abstopk"):
        config["k"] = 6
    if architecture == "topk":
        config["rescale_acts_by_decoder_norm"] = False
    folder.mkdir()
    save_file(_weights(architecture, seed), folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))


def _weights(architecture: str, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float, mean: float = 0.0) -> NDArray[np.float32]:
        return (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    weights = {
        "W_enc": normal(WIDTH, FEATURES, scale=WIDTH**-0.5),
        "W_dec": normal(FEATURES, WIDTH, scale=WIDTH**-0.5),
        "b_dec": normal(WIDTH, scale=0.1),
    }
    if architecture == "gated":
        gate = {"b_gate": normal(FEATURES, scale=0.1, mean=-1.0), "b_mag": normal(FEATURES, scale=0.1)}
        return weights | gate | {"r_mag": normal(FEATURES, scale=0.1)}
    if architecture == "jumprelu":
        weights["threshold"] = np.abs(normal(FEATURES, scale=0.2, mean=1.4))
    mean = -1.4 if architecture == "standard" else 0.0
    return weights | {"b_enc": normal(FEATURES, scale=0.1, mean=mean)}
