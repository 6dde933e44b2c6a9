"""The tables of attributions, recomputed densely from the files alone: plain torch, float64, own loops.

Nothing of ours is called but the job itself: the module is the tiny model, an SAE is its two files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from jobs.evaluation.attribute import attribute
from jobs.lake.extract import extract
from jobs.lake.tokenize import tokenize
from pipeline.store import FeatureStore
from schemas.run.file import parse_run_file
from tests.kit import mild_lm, write_sae, write_tiny_tokenizer

D_SAE, K = 48, 3
SITES = {
    "standard0": ("standard", 0, "last_token"),
    "gated1": ("gated", 1, "mean"),
    "jumprelu2": ("jumprelu", 2, "last_token"),
    "topk1": ("topk", 1, "none"),
}
"""Site -> architecture, layer, pooling."""


def prompts() -> list[dict[str, Any]]:
    """Of 3 to 8 words, with answers of one to three words; the job `judge` has one prompt."""
    rng, rows = np.random.default_rng(11), []
    for n in range(7):
        words, answers = rng.integers(0, 60, rng.integers(3, 9)), rng.choice(60, 2, replace=False)
        rows.append(
            {
                "text": " ".join(f"w{word}" for word in words),
                "job": "judge" if n == 0 else ("cook", "nurse")[n % 2],
                "yes": f"w{answers[0]}" + " w1 w2" * (n % 2),
                "no": f"w{answers[1]}" + " w3" * (n % 3),
            }
        )
    return rows


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    folder = tmp_path_factory.mktemp("dense")
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts()))
    write_tiny_tokenizer(folder / "tokenizer")
    sites = []
    for seed, (name, (architecture, layer, pooling)) in enumerate(SITES.items()):
        hook = f"layers.{layer}"
        sae = write_sae(folder / name, architecture, d_sae=D_SAE, hook_name=hook, context_size=16, seed=seed)
        sites.append({"name": name, "sae": str(sae), "pooling": pooling})
    corpus = {"path": str(folder / "prompts.jsonl"), "label_columns": ["job"]}
    content = {
        "corpus": {"kind": "prompts", **corpus, "prompts": {"answers": ["yes", "no"]}},
        "tokens": {"tokenizer": str(folder / "tokenizer"), "separator": "none"},
        "model": {"loader": "torch_module", "path": "tests.kit:mild_lm"},
        "sites": sites,
        "store": {"root": str(folder / "store"), "pass": "p"},
        "extract": {"executor": "in_process", "check_sae": "off"},
    }
    run = parse_run_file(content, "run.yaml")
    tokenize(run)
    extract(run)
    return FeatureStore.open(run.store.root)


def features_of(folder: Path, x: torch.Tensor) -> torch.Tensor:
    """Activations [n, F] of x [n, D], by the formulas of the four architectures."""
    w = {name: tensor.double() for name, tensor in load_file(folder / "sae_weights.safetensors").items()}
    config = json.loads((folder / "cfg.json").read_text())
    x = x - w["b_dec"]
    if config["architecture"] == "gated":
        magnitude = torch.relu(x @ w["W_enc"] * w["r_mag"].exp() + w["b_mag"])
        return magnitude * (x @ w["W_enc"] + w["b_gate"] > 0)
    before = x @ w["W_enc"] + w["b_enc"]
    if config["architecture"] == "jumprelu":
        return torch.relu(before) * (before > w["threshold"])
    if config["architecture"] == "topk":
        kept = torch.zeros_like(before).scatter_(1, before.topk(config["k"], dim=1).indices, 1.0)
        return torch.relu(before) * kept
    return torch.relu(before)


class Dense:
    """One prompt: gap(s) for latents scaled or set to 0, by running the module from the layer on."""

    def __init__(self, row: dict[str, Any], folder: Path, layer: int, pooling: str) -> None:
        self.module = mild_lm().double().eval()
        self.layer, ids = layer, [0, *(int(word[1:]) + 3 for word in row["text"].split())]
        self.answers = [int(row[name].split()[0][1:]) + 3 for name in ("yes", "no")]
        with torch.no_grad():
            x = self.module.embed(torch.tensor(ids)[None])
            for block in self.module.layers[: layer + 1]:
                x = block(x)
        self.x, last = x, len(ids) - 1
        self.rows = [[last], list(range(1, last + 1))][pooling != "last_token"]
        read = self.x[0, self.rows]
        self.mean = pooling == "mean"
        self.f = features_of(folder, read.mean(0, keepdim=True) if self.mean else read)
        self.w_dec = load_file(folder / "sae_weights.safetensors")["W_dec"].double()

    def gap(self, latents: torch.Tensor) -> torch.Tensor:
        """p(yes) - p(no) with these latents [V, F] in the place of its own."""
        moved = (latents - self.f) @ self.w_dec
        y = self.x.clone()
        y[0, self.rows] = y[0, self.rows] + (moved.expand(len(self.rows), -1) if self.mean else moved)
        for block in self.module.layers[self.layer + 1 :]:
            y = block(y)
        chances = self.module.head(y)[0, -1].softmax(0)
        return chances[self.answers[0]] - chances[self.answers[1]]

    def attributions(self, steps: int = 64) -> tuple[np.ndarray, np.ndarray]:
        """IG of the gap and of its square, [F] each: one step of the path after another, Simpson's rule."""
        ig, ig2 = torch.zeros(D_SAE).double(), torch.zeros(D_SAE).double()
        for step in range(steps + 1):
            weight = (1 if step in (0, steps) else 4 if step % 2 else 2) / (3 * steps)
            latents = (self.f * step / steps).requires_grad_(True)
            gap = self.gap(latents)
            (slope,) = torch.autograd.grad(gap, latents)
            (slope2,) = torch.autograd.grad(self.gap(latents) ** 2, latents)
            ig += weight * (self.f * slope).sum(0)
            ig2 += weight * (self.f * slope2).sum(0)
        return ig.numpy(), ig2.numpy()

    def effects(self, power: int) -> np.ndarray:
        """What the gap, or its square, loses when one feature is set to 0 in all its vectors: [F]."""
        with torch.no_grad():
            whole, lost = self.gap(self.f) ** power, np.zeros(D_SAE)
            for feature in (self.f != 0).any(0).nonzero()[:, 0].tolist():
                without = self.f.clone()
                without[:, feature] = 0
                lost[feature] = float(whole - self.gap(without) ** power)
        return lost


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES)
def test_attributions_gaps_and_effects_are_those_of_dense_loops(store: FeatureStore, site: str) -> None:
    architecture, layer, pooling = SITES[site]
    folder = Path(next(s.sae for s in store.plans["p"].sites if s.name == site))
    rows = prompts()
    dense = [Dense(row, folder, layer, pooling) for row in rows]
    ig, ig2 = (np.stack(part) for part in zip(*(one.attributions() for one in dense), strict=True))
    active = np.stack([(one.f != 0).any(0).numpy() for one in dense])
    assert active.any(axis=1).all(), f"{architecture}: a prompt without features tests nothing"
    assert np.abs(ig).max() > 1e-4
    with torch.no_grad():
        gap, baseline = (np.array([float(one.gap(scale * one.f)) for one in dense]) for scale in (1, 0))
    # completeness of the dense computation itself, then of the table
    np.testing.assert_allclose(ig.sum(1), gap - baseline, atol=2e-6)
    np.testing.assert_allclose(ig2.sum(1), gap**2 - baseline**2, atol=2e-6)
    for by, numbers, power in (("ig", ig, 1), ("ig2", ig2, 2)):
        selection = attribute(store, site, k=K, by=by, tolerance=1e-4, model="tests.kit:mild_lm")
        message = store.scan_table(site, "attribution_prompts").collect()
        assert message["complete"].all()
        for name, expected in (
            ("gap", gap),
            ("baseline", baseline),
            ("ig_sum", ig.sum(1)),
            ("ig2_sum", ig2.sum(1)),
        ):
            np.testing.assert_allclose(message[name], expected, atol=2e-6, err_msg=name)
        effects = np.stack([one.effects(power) for one in dense])
        table = store.scan_table(site, "attributions").collect()
        assert sorted(table["value"].unique()) == ["cook", "judge", "nurse"]
        for value in ("cook", "judge", "nurse"):
            mine = np.array([row["job"] == value for row in rows])
            result = table.filter(label="job", value=value)
            assert result["feature"].to_list() == np.flatnonzero(active[mine].any(0)).tolist()
            at = result["feature"].to_numpy()
            assert result["active"].to_list() == active[mine].sum(0)[at].tolist()
            assert set(result["prompts"]) == {int(mine.sum())}
            for name, each in (("ig", ig), ("ig2", ig2)):
                np.testing.assert_allclose(result[name], each[mine].mean(0)[at], rtol=2e-3, atol=2e-7)
            if value == "judge":
                assert result["ig_se"].null_count() == result.height
            else:
                error = ig[mine].std(0, ddof=1)[at] / np.sqrt(mine.sum())
                np.testing.assert_allclose(result["ig_se"], error, rtol=5e-3, atol=2e-7)
            chosen = selection.filter(pl.col("value") == value).drop_nulls("rank").sort("rank")
            mean = numbers[mine].mean(0)
            best = np.abs(mean)[chosen["feature"].to_numpy()]
            np.testing.assert_allclose(best, np.sort(np.abs(mean))[::-1][: len(best)], rtol=5e-3, atol=1e-6)
            expected = effects[mine].mean(0)[chosen["feature"].to_numpy()]
            np.testing.assert_allclose(chosen["effect"], expected, rtol=5e-3, atol=2e-6)
            if value == "judge":
                assert chosen["effect_low"].null_count() == chosen.height == chosen["holds"].null_count()
