"""`latentlake status STORE`: how far a running, finished or dead run is, read from the store alone."""

from __future__ import annotations

from pathlib import Path

import polars as pl
from rich.table import Table

from jobs.progress import console
from pipeline.store import FeatureStore
from schemas.records import Receipt


def status(root: Path) -> None:
    """Print the lake, then a line for each pass and for each table."""
    store = FeatureStore.open(root)
    rows = sum(record.rows for record in store.shards)
    documents = sum(record.documents for record in store.shards)
    console.print(
        f"[bold]{root}[/]: {documents:,} documents, {rows:,} tokens in {len(store.shards)} shards, contexts "
        f"of {store.lake.context_size}; special tokens: {store.lake.special_tokens}",
        highlight=False,
    )
    console.print(_passes(store))
    for site in store.sites:
        for name in store.tables(site):
            stale = " [yellow](stale: made from other shards; run `latentlake stats` and on)[/]"
            console.print(
                f"  tables/{site}/{name}.parquet{stale if store.is_stale(site, name) else ''}",
                highlight=False,
            )


def _passes(store: FeatureStore) -> Table:
    table = Table(title="passes")
    for column in (
        "pass",
        "sites",
        "shards",
        "given up",
        "nonzeros",
        "bytes/nonzero",
        "tokens/s of a worker",
    ):
        table.add_column(column, justify="left" if column in ("pass", "sites") else "right")
    for name, plan in store.plans.items():
        receipts = store.pass_receipts(name)
        nnz = sum(site.nnz for receipt in receipts.values() for site in receipt.sites.values())
        size = sum(item.bytes for receipt in receipts.values() for item in receipt.objects)
        table.add_row(
            name,
            ", ".join(f"{site.name} ({site.architecture}, d_sae {site.d_sae:,})" for site in plan.sites),
            f"{len(receipts)}/{len(store.shards)}",
            str(_quarantined(store, name)),
            f"{nnz:,}",
            f"{size / nnz:.2f}" if nnz else "",
            f"{_rate(list(receipts.values())):,.0f}" if receipts else "",
        )
    return table


def _rate(receipts: list[Receipt]) -> float:
    """Tokens a second of work."""
    seconds = sum(sum(receipt.seconds.values()) for receipt in receipts)
    return sum(receipt.rows for receipt in receipts) / max(seconds, 1e-9)


def _quarantined(store: FeatureStore, pass_name: str) -> int:
    path = store.layout.manifest(pass_name)
    return pl.read_parquet(path).filter(state="quarantined").height if path.exists() else 0


if __name__ == "__main__":
    import sys

    from jobs.cli import main

    main(["status", *sys.argv[1:]])
