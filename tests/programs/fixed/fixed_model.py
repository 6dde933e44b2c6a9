"""A seeded module for `torch_module`. Its import path and source are in every digest of it: leave both."""

from __future__ import annotations

import torch


class Block(torch.nn.Module):
    """x + tanh(W mean(x so far)), so that the contents and the order of a context show in its numbers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)[:, None]
        return x + torch.tanh(self.linear(x.cumsum(1) / count))


class FixedLM(torch.nn.Module):
    """Embedding, three blocks, head: ids int64 [B, T] -> logits [B, T, 512]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(512, 16)
        self.layers = torch.nn.ModuleList(Block(16) for _ in range(3))
        self.head = torch.nn.Linear(16, 512)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(token_ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def build() -> torch.nn.Module:
    """The module, the same at every call."""
    model, generator = FixedLM(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model
