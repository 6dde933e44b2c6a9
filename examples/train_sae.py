"""Corpus -> x -> SAE -> features, in one store: cache x, train an SAE on it with sae-lens, analyse the SAE.

Run from the repository root, with the extra `saelens` and the demo's model installed (`make setup`):

    python -m examples.train_sae --out out/train

1. A pass without an SAE stores x at layer 9 of SmolLM2-135M over State of the Union addresses (layout dense).
2. sae-lens' own trainer takes shuffled batches of it from `pipeline.training.dense_dataset`; the model is not
   needed. The last shard, the latest addresses, is held out.
3. `analyse.yaml` is written next to the store, and run as by `latentlake run`: a second pass over the same
   tokens, with the SAE that came out, stores features; then tables, figures and report.
4. How much of the variance of x the features explain is measured from the store alone, without model or SAE.

What is done is not done again: the folder `sae` is trained once, passes go on where they stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer

from jobs.lake.run import run
from jobs.studies.demo.model import ensure_demo_model
from pipeline.store import FeatureStore
from pipeline.store.reading.dense_site import DenseSite
from pipeline.training.dense_dataset import DenseDataset, DenseLoader
from schemas.layout import DENSE
from schemas.run.file import parse_run_file

HOOK, CONTEXT = "blocks.9.hook_resid_post", 128
CORPUS = Path(__file__).parents[1] / "jobs" / "demo_data" / "sotu.parquet"


def content(options: argparse.Namespace, site: dict[str, Any], layouts: list[str]) -> dict[str, Any]:
    """A run file of one pass over the addresses; both passes differ in site and layouts alone."""
    return {
        "corpus": {"path": str(CORPUS), "label_columns": ["year", "president", "party"]},
        "tokens": {
            "context_size": CONTEXT,
            "prepend_bos": True,
            "limit": options.tokens,
            "shard_tokens": max(options.tokens // 6, 1),
        },
        "model": {"path": str(ensure_demo_model())},
        "sites": [site],
        "store": {"root": str(options.out / "store"), "layouts": layouts},
        "extract": {"executor": "in_process", "cpus_per_worker": 2},
    }


def train(args: argparse.Namespace, folder: Path) -> None:
    """A TopK SAE on x of site `x9`, saved in SAELens' inference format."""
    torch.manual_seed(args.seed)
    shards, _ = split(FeatureStore.open(args.out / "store"))
    options = {"batch_rows": args.batch, "seed": args.seed, "shards": shards}
    dataset = DenseDataset(str(args.out / "store"), "x9", **options)
    model = ensure_demo_model().name
    metadata = SAEMetadata(model_name=model, hook_name=HOOK, context_size=CONTEXT, prepend_bos=True)
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=dataset.dense.width,
            d_sae=args.features,
            k=args.k,
            normalize_activations="expected_average_only_in",
            metadata=metadata,
        )
    )
    trainer = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=args.samples,
            train_batch_size_samples=args.batch,
            lr=args.lr,
            lr_end=args.lr / 10,
            lr_warm_up_steps=50,
            lr_decay_steps=args.samples // args.batch // 3,
            dead_feature_window=100,
            n_batches_for_norm_estimate=8,
        ),
        sae=sae,
        data_provider=DenseLoader(dataset).endless(),
    )
    trainer.fit().save_inference_model(folder)


def split(store: FeatureStore) -> tuple[list[str], list[str]]:
    """Shards to train on, and those held out: the last one, where there are several."""
    names = [shard.name for shard in store.dense("x9")]
    return (names[:-1], names[-1:]) if len(names) > 1 else (names, [])


def explained_variance(store: FeatureStore, site: str, shards: Sequence[str]) -> float:
    """1 - SSE / SST over the rows of some shards: x from one pass, features and decoder from the other."""
    weights, _ = store.site_weights(site, ["W_dec", "b_dec"])
    dense = DenseSite(store, "x9", shards)
    n, sse, total, squares = 0, 0.0, np.zeros(dense.width), np.zeros(dense.width)
    for shard in dense:
        rows = dense.stored(shard)
        x = shard.read()[rows].astype(np.float64)
        reconstruction = store.csr(site, shard.name)[rows] @ weights["W_dec"] + weights["b_dec"]
        sse += float(((x - reconstruction) ** 2).sum())
        n, total, squares = n + len(x), total + x.sum(0), squares + (x**2).sum(0)
    return float(1 - sse / (squares - total**2 / n).sum())


def print_summary(store: FeatureStore) -> None:
    """Print active features, bytes a row and explained variance."""
    features = store.scan_features("trained").select(
        features=pl.len(),
        dead=(pl.col("n_active") == 0).sum(),
        active_on_a_row=pl.col("frequency").sum(),
        counted_rows=pl.col("counted_rows").first(),
    )
    print(features.collect())
    receipts = store.receipts("x9").values()
    size = sum(item.bytes for each in receipts for item in each.objects if item.path.endswith(DENSE))
    print(f"x: {size / sum(each.rows for each in receipts):,.0f} bytes a row")
    for what, shards in zip(("it was trained on", "held out"), split(store), strict=True):
        if shards:
            value = explained_variance(store, "trained", shards)
            print(f"explained variance over the {len(shards)} shards {what}: {value:.4f}")


def main() -> None:
    """The whole loop."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/train"), help="folder of the store and the SAE")
    parser.add_argument("--tokens", type=int, default=100_000, help="tokens of the corpus")
    parser.add_argument("--samples", type=int, default=1_000_000, help="rows to train on, epoch after epoch")
    parser.add_argument("--batch", type=int, default=2048, help="rows of a batch")
    parser.add_argument("--features", type=int, default=2304, help="width of the SAE")
    parser.add_argument("--k", type=int, default=32, help="features of a row")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    cached = content(args, {"name": "x9", "hook_name": HOOK}, ["dense"])
    run(parse_run_file(cached, "examples/train_sae.py"))
    sae, path = args.out / "sae", args.out / "analyse.yaml"
    if not (sae / "cfg.json").is_file():
        train(args, sae)
    analysed = content(args, {"name": "trained", "sae": str(sae)}, ["token_major", "feature_major"])
    path.write_text(yaml.safe_dump(analysed, sort_keys=False), encoding="utf-8")
    run(parse_run_file(analysed, str(path)))
    print_summary(FeatureStore.open(args.out / "store"))


if __name__ == "__main__":
    main()
