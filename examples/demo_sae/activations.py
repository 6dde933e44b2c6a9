"""Contexts of tokens, and what the model gives for them at the hook, kept in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer

from jobs.studies.demo.model import ensure_demo_model

HOOK = "blocks.9.hook_resid_post"
STOP_AT = 10
CONTEXT = 128
D_IN = 576


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
    """The demo model on the CPU in float32, with the tokenizer next to it."""
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


def limited(contexts: torch.Tensor, tokens: int, seed: int) -> torch.Tensor:
    """The contexts in a seeded random order, cut to this many tokens."""
    order = torch.randperm(contexts.shape[0], generator=torch.Generator().manual_seed(seed))
    return contexts[order][: max(1, tokens // CONTEXT)]
