"""Ray's metrics of a run, with tags of few values: the pass and, in a worker, the node; never a shard.

They appear on each node's metrics port with the prefix `ray_`, as `ray_latentlake_tokens_total` does.
"""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Counter, Histogram

from schemas.records import Receipt

SHARD_SECONDS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0]
"""Bounds of the histogram's bins."""


class WorkerMetrics:
    """Counts what one worker commits."""

    def __init__(self, pass_name: str, node: str) -> None:
        tags, keys = {"pass": pass_name, "node": node}, ("pass", "node")
        self._tokens = _counter("latentlake_tokens", "Tokens of finished shards.", keys, tags)
        self._nonzeros = _counter("latentlake_nonzeros", "Activations of finished shards.", keys, tags)
        self._seconds: Any = Histogram(
            "latentlake_shard_seconds", "Wall seconds of a shard.", boundaries=SHARD_SECONDS, tag_keys=keys
        )
        self._seconds.set_default_tags(tags)

    def committed(self, receipt: Receipt, seconds: float) -> None:
        """One shard more (a counter refuses to grow by 0)."""
        self._seconds.observe(seconds)
        if receipt.rows:
            self._tokens.inc(receipt.rows)
        if receipt.nnz:
            self._nonzeros.inc(receipt.nnz)


class DriverMetrics:
    """Counts the attempts that failed, by what became of them."""

    def __init__(self, pass_name: str) -> None:
        description = "Attempts at shards that ended without a receipt: error, lost or preempted."
        self._failed = _counter(
            "latentlake_failed_attempts", description, ("pass", "why"), {"pass": pass_name}
        )

    def failed(self, why: str) -> None:
        """One attempt more that failed."""
        self._failed.inc(1, tags={"why": why})


def _counter(name: str, description: str, keys: tuple[str, ...], tags: dict[str, str]) -> Any:
    counter = Counter(name, description, tag_keys=keys)
    counter.set_default_tags(tags)
    return counter
