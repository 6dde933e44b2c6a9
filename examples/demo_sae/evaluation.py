"""What the demo SAE keeps of the model: reconstruction, sparsity and losses on counted rows."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE

from examples.demo_sae.activations import (
    CONTEXT,
    D_IN,
    HOOK,
    Model,
    counted,
    limited,
    load_model,
    pack,
)
from examples.demo_sae.corpora import SHIPPED_SINCE, read_addresses, training_texts
from examples.demo_sae.training import D_SAE


@dataclass
class Totals:
    """Running float64 sums over counted rows."""

    rows: int = 0
    squared_error: float = 0.0
    squared: float = 0.0
    cosine: float = 0.0
    total: torch.Tensor = field(default_factory=lambda: torch.zeros(D_IN, dtype=torch.float64))
    fired: torch.Tensor = field(default_factory=lambda: torch.zeros(D_SAE, dtype=torch.float64))

    def add(self, x: torch.Tensor, y: torch.Tensor, values: torch.Tensor) -> None:
        """Add rows, their reconstructions and their feature values."""
        x, y = x.double(), y.double()
        self.rows += x.shape[0]
        self.squared_error += float((x - y).pow(2).sum())
        self.squared += float(x.pow(2).sum())
        self.cosine += float(torch.cosine_similarity(x, y, dim=-1).sum())
        self.total += x.sum(0)
        self.fired += (values > 0).double().sum(0)

    def figures(self) -> dict[str, float]:
        """The measured figures; variance is taken about the mean of all counted rows."""
        variance = self.squared - float(self.total.pow(2).sum()) / self.rows
        frequency = self.fired / self.rows
        return {
            "rows": self.rows,
            "l0": float(frequency.sum()),
            "explained_variance": 1 - self.squared_error / variance,
            "mse_per_element": self.squared_error / (self.rows * D_IN),
            "variance_per_element": variance / (self.rows * D_IN),
            "cosine": self.cosine / self.rows,
            "dead_share": float((self.fired == 0).double().mean()),
            "features_on_over_10_percent": int((frequency > 0.1).sum()),
        }


@torch.no_grad()
def reconstruction(model: Model, sae: Any, contexts: torch.Tensor) -> dict[str, float]:
    """Sparsity and reconstruction over every counted row of these contexts."""
    totals = Totals()
    for tokens in contexts.split(16):
        acts, mask = model.rows(tokens, fast=False)
        values = sae.encode(acts[mask])
        totals.add(acts[mask], sae.decode(values), values)
    return totals.figures()


@torch.no_grad()
def next_token_loss(model: Model, tokens: torch.Tensor, patch: Callable[[Any], Any] | None) -> float:
    """Summed cross entropy over the 127 predictions of every context, the hook's counted rows patched."""
    mask = counted(tokens, model.special)

    def replace(acts: torch.Tensor, hook: Any) -> torch.Tensor:
        del hook
        acts = acts.clone()
        acts[mask] = patch(acts[mask]) if patch is not None else acts[mask]
        return acts

    logits = model.bridge.run_with_hooks(tokens, return_type="logits", fwd_hooks=[(HOOK, replace)])
    flat = logits[:, :-1].reshape(-1, logits.shape[-1])
    return float(torch.nn.functional.cross_entropy(flat, tokens[:, 1:].reshape(-1), reduction="sum"))


def losses(model: Model, sae: Any, contexts: torch.Tensor) -> dict[str, float]:
    """Mean loss clean, with reconstructions and with zeros at the counted rows, and the share recovered."""
    patches: dict[str, Callable[[Any], Any] | None] = {
        "clean": None,
        "patched": sae,
        "zero": torch.zeros_like,
    }
    sums = dict.fromkeys(patches, 0.0)
    for tokens in contexts.split(8):
        for name, patch in patches.items():
            sums[name] += next_token_loss(model, tokens, patch)
    predictions = contexts.shape[0] * (CONTEXT - 1)
    mean_losses = {f"loss_{name}": value / predictions for name, value in sums.items()}
    gap = mean_losses["loss_zero"] - mean_losses["loss_clean"]
    share = (mean_losses["loss_zero"] - mean_losses["loss_patched"]) / gap
    return {**mean_losses, "loss_recovered": share, "loss_predictions": predictions}


def evaluation_contexts(model: Model, tgz: Path, tokens: int) -> dict[str, torch.Tensor]:
    """Contexts of the held-out addresses, of the shipped corpus and of the training mix, cut to size."""
    addresses = read_addresses(tgz)
    packed = {
        "held_out": pack(model.tokenizer, [a.text for a in addresses if a.held_out]),
        "shipped_corpus": pack(model.tokenizer, [a.text for a in addresses if a.year >= SHIPPED_SINCE]),
        "training_mix": torch.cat([pack(model.tokenizer, t) for t in training_texts(tgz).values()]),
    }
    return {name: limited(contexts, tokens, seed=1) for name, contexts in packed.items()}


def run_evaluation(arguments: argparse.Namespace) -> None:
    """Print the figures of the exported SAE: reconstruction on three sets, losses on the first two."""
    model, sae = load_model(), SAE.load_from_disk(arguments.evaluate)
    for name, contexts in evaluation_contexts(model, arguments.tgz, arguments.tokens).items():
        figures = {"tokens": contexts.numel(), **reconstruction(model, sae, contexts)}
        if name != "training_mix":
            figures.update(losses(model, sae, contexts[: arguments.loss_contexts]))
        print(json.dumps({name: figures}, indent=1), flush=True)
