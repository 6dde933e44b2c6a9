"""`latentlake status STORE`: how far a running, finished or dead run is, read from the store alone."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from rich.markup import escape

from jobs.console import say
from pipeline.store import FeatureStore
from pipeline.store.objects import readable
from schemas.records import Receipt


def status(root: Path) -> None:
    """Print the lake, then what each pass holds, then the derived tables."""
    store = FeatureStore.open(root)
    rows = sum(record.rows for record in store.shards)
    documents = sum(record.documents for record in store.shards)
    say(
        f"[bold]{escape(str(root))}[/]: {documents:,} documents, {rows:,} tokens in "
        f"{len(store.shards)} shards, contexts of {store.lake.context_size}; "
        f"special tokens: {store.lake.special_tokens}"
    )
    for name in store.plans:
        say(_pass_line(store, name))
    for site in store.sites:
        if store.compacted(site) is not None:
            covered, rest = len(store.committed(site)), len(store.uncompacted(site))
            behind = (
                f" [yellow](behind: {rest:,} shards came since; run `latentlake compact`)[/]" if rest else ""
            )
            say(f"  compaction of {site}: {covered - rest:,} shards{behind}")
        for name in store.tables(site):
            stale = " [yellow](stale: made from other shards; run `latentlake stats` and on)[/]"
            say(f"  tables/{site}/{name}.parquet{stale if store.is_stale(site, name) else ''}")


def _pass_line(store: FeatureStore, name: str) -> str:
    """How far one pass is, what it weighs, and how fast it went."""
    receipts = store.pass_receipts(name)
    nnz = sum(site.nnz for receipt in receipts.values() for site in receipt.sites.values())
    size = sum(item.bytes for receipt in receipts.values() for item in receipt.objects)
    facts = [f"{len(receipts)}/{len(store.shards)} shards committed"]
    if quarantined := _quarantined(store, name):
        facts.append(f"[red]{quarantined} quarantined[/]")
    if nnz:
        facts += [
            f"{nnz:,} nonzeros of {size / nnz:.2f} bytes",
            f"{_rate(receipts):,.0f} tokens/s of a worker",
        ]
    sites = store.plans[name].sites
    facts += [f"site {s.name} ({s.hook_name}, {s.architecture}, d_sae {s.d_sae:,})" for s in sites]
    return f"[bold]pass {name}[/]: {', '.join(facts)}"


def _rate(receipts: dict[str, Receipt]) -> float:
    """Tokens a second of work."""
    seconds = sum(sum(receipt.seconds.values()) for receipt in receipts.values())
    return sum(receipt.rows for receipt in receipts.values()) / max(seconds, 1e-9)


def _quarantined(store: FeatureStore, pass_name: str) -> int:
    path = store.layout.manifest(pass_name)
    if not path.exists():
        return 0
    with readable(path):
        return pl.read_parquet(path, glob=False).filter(state="quarantined").height


if __name__ == "__main__":
    import sys

    from jobs.cli import main

    main(["status", *sys.argv[1:]])
