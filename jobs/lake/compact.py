"""`latentlake compact STORE`: the postings of all shards in one file per feature block, for quick queries."""

from __future__ import annotations

import time

from jobs.terminal.console import say
from pipeline.store import FeatureStore
from pipeline.store.upkeep.compaction import compact as write_compaction
from pipeline.tasks import OneProcess, Tasks
from schemas.sentences import several


def compact(store: FeatureStore, site: str, tasks: Tasks | None = None) -> None:
    """Write a compaction of a site, unless one covers all that is committed."""
    began = time.monotonic()
    if store.compacted(site) is not None and not store.uncompacted(site):
        say(
            f"[bold]compact[/] {site}: nothing to do, all {len(store.committed(site)):,} shards are compacted"
        )
        return
    made = write_compaction(store, site, tasks or OneProcess())
    size, nnz = (sum(getattr(file, name) for file in made.files) for name in ("bytes", "nnz"))
    say(
        f"[bold]compact[/] {site}: {nnz:,} activations of {several(len(made.shards), 'shard')} in "
        f"{several(len(made.files), 'file')}, {size / max(nnz, 1):.2f} bytes each "
        f"({time.monotonic() - began:.1f} s)"
    )
