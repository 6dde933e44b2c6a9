"""Sums over receipts: what is reported of a run, in memory that does not grow with the number of shards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from schemas.records import Receipt
from schemas.values import Explained


@dataclass
class Tally:
    """What some committed shards hold and took."""

    shards: int = 0
    rows: int = 0
    objects: int = 0
    underflow: int = 0
    seconds: float = 0.0
    """Of work, over all stages and workers."""
    nnz: Counter[str] = field(default_factory=Counter)
    """By site."""
    bytes: Counter[str] = field(default_factory=Counter)
    """By kind of object: csr.zarr, postings.parquet ..."""
    explained: dict[str, tuple[str, Explained]] = field(default_factory=dict)
    """By site the first shard on which its SAE was checked, and the explained variance there."""
    devices: set[str] = field(default_factory=set)

    def add(self, receipt: Receipt) -> None:
        """Count one shard more."""
        self.shards += 1
        self.rows += receipt.rows
        self.objects += len(receipt.objects)
        self.seconds += receipt.work_seconds
        self.devices.add(receipt.environment.get("device_model", ""))
        for item in receipt.objects:
            self.bytes[item.path.rpartition("/")[2]] += item.bytes
        for name, site in receipt.sites.items():
            self.nnz[name] += site.nnz
            self.underflow += site.underflow
            if site.explained_variance is not None:
                explained = (receipt.shard, Explained(site.explained_variance, site.explained_variance_rest))
                self.explained[name] = min(
                    explained, self.explained.get(name, explained), key=lambda pair: pair[0]
                )

    @property
    def nonzeros(self) -> int:
        """Over all sites."""
        return self.nnz.total()

    @property
    def size(self) -> int:
        """Bytes of all objects."""
        return self.bytes.total()

    @property
    def rate(self) -> float:
        """Rows a second of work: of one worker that always has some."""
        return self.rows / max(self.seconds, 1e-9)
