"""`latentlake status STORE`: how far a running, finished or dead run is, read from the store alone."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.markup import escape

from jobs.command.options import AS_JSON
from jobs.lake.pass_status import PassStatus, has_begun, read_status, state_of
from jobs.terminal.console import console, say
from jobs.terminal.progress import duration, size
from pipeline.store import FeatureStore
from pipeline.store.objects.verbs import listed
from pipeline.store.records.registry import job_of
from pipeline.store.records.tables import RECEIPTS_KEY
from pipeline.store.records.unfinished import unfinished_tokens
from schemas.layout import DENSE
from schemas.names import NAME
from schemas.sentences import redacted, several

AGAIN_S = 5.0


def command(
    root: str,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every five seconds.")] = False,
) -> Annotated[dict[str, Any], AS_JSON]:
    """`status` once, or again and again until every pass is finished; what `summary` gives."""
    if watch:
        return summary(watch_passes(root))
    store = FeatureStore.open(root)
    show(store)
    return summary(store)


def status(root: str) -> bool:
    """As `show` of the store there."""
    return show(FeatureStore.open(root))


def summary(store: FeatureStore) -> dict[str, Any]:
    """The lake, its passes and tables, as `--json` prints them."""
    passes = [read_status(store, name, time.time()) for name in store.plans]
    return {
        "root": redacted(str(store.layout.root)),
        "documents": sum(record.documents for record in store.shards),
        "tokens": sum(record.rows for record in store.shards),
        "shards": len(store.shards),
        "context_size": store.lake.context_size,
        "passes": [
            {
                "name": each.name,
                "sites": [site.name for site in store.pass_sites(each.name)],
                "shards": each.shards,
                "committed": each.tally.shards,
                "nonzeros": each.tally.nonzeros,
                "state": each.state,
                "is_finished": each.is_finished,
                "quarantined": each.quarantined,
            }
            for each in passes
        ],
        "tables": [
            {"site": site, "name": name, "is_stale": store.is_stale(site, name)}
            for site in store.sites
            for name in store.tables(site)
        ],
    }


def show(store: FeatureStore) -> bool:
    """Print the lake, then how far each pass is, then the derived tables; whether every pass is finished."""
    is_finished = _status(store)
    for site in store.sites:
        # A figure names the receipts of its table; those of version 0.2 name none.
        now = store.receipts_digest(site).encode()
        for path in sorted(listed(store.layout.figures(site)), key=str):
            data = path.read_bytes() if path.suffix in (".png", ".svg") else b""
            if RECEIPTS_KEY.encode() in data and now not in data:
                say(f"  figures/{site}/{escape(path.name)} [yellow](stale: drawn from other shards)[/]")
    return is_finished


def _status(store: FeatureStore) -> bool:
    rows = sum(record.rows for record in store.shards)
    documents = sum(record.documents for record in store.shards)
    say(
        f"[bold]{escape(str(store.layout.root))}[/]: {several(documents, 'document')}, {rows:,} tokens in "
        f"{several(len(store.shards), 'shard')}, contexts of {store.lake.context_size}; "
        f"special tokens: {store.lake.special_tokens}"
    )
    if unfinished := unfinished_tokens(store.layout, store.links):
        say(f"  [yellow]unfinished[/]: {escape(unfinished)}")
    for name in _beginning(store):
        state = state_of(store.layout, name, time.time())
        say(f"[bold]pass {name}[/]: no plan yet; {escape(state)}")
    passes = [read_status(store, name, time.time()) for name in store.plans]
    for each in passes:
        _show(store, each)
    for site in store.sites:
        if store.compacted(site) is not None:
            covered, rest = len(store.committed(site)), len(store.uncompacted(site))
            note = f" [yellow]({rest:,} shards were added since; run `latentlake compact`)[/]" if rest else ""
            say(f"  compaction of {site}: {covered - rest:,} shards{note}")
        for name in store.tables(site):
            stale = f" [yellow](stale: made from other shards; run `latentlake {job_of(name)}`)[/]"
            say(f"  tables/{site}/{name}.parquet{stale if store.is_stale(site, name) else ''}")
    return all(each.is_finished for each in passes) and not _beginning(store)


def _beginning(store: FeatureStore) -> list[str]:
    """Passes that have events and no plan: of a run whose workers load, or could not."""
    folders = listed(store.layout.passes)
    names = sorted(folder.name for folder in folders if NAME.fullmatch(folder.name))
    return [name for name in names if name not in store.plans and has_begun(store.layout, name)]


def watch_passes(root: str) -> FeatureStore:
    """The same again and again, until every pass is finished; figures are not read for it."""
    store = FeatureStore.open(root)
    while True:
        if console.is_terminal:
            console.clear()
        if _status(store):
            return store
        time.sleep(AGAIN_S)
        store = store.again()


def _show(store: FeatureStore, current: PassStatus) -> None:
    """One pass, in some lines."""
    tally, name = current.tally, current.name
    say(f"[bold]pass {name}[/]: {tally.shards}/{current.shards} shards committed; {escape(current.state)}")
    for site in store.pass_sites(name):
        sae = f"{site.architecture}, d_sae {site.d_sae:,}" if site.has_sae else "only x, no SAE"
        say(f"  site {site.name} ({escape(site.hook_name)}, {sae})")
    if stored := tally.bytes[DENSE]:
        dtype = store.plans[name].dense_dtype
        say(f"  x of {stored / max(tally.rows, 1):,.0f} bytes per token in {dtype}, {size(stored)}")
    sparse = tally.size - tally.bytes[DENSE]
    if tally.nonzeros:
        say(
            f"  {tally.nonzeros:,} nonzeros of {sparse / tally.nonzeros:.2f} bytes, "
            f"{size(sparse)}; {tally.rate:,.0f} tokens/s per worker"
        )
    # the run's own rate, which counts all its workers and what is in flight; the tally's is of one worker
    if current.is_live:
        rate, run = current.run.rate(current.now), current.run
        left = f", {duration(current.left / rate)} left" if rate else ""
        say(
            f"  {rate:,.0f} tokens/s over the last minutes{left}; "
            f"{several(len(run.workers), 'worker')}, {run.retries} retries"
        )
    if (predicted := current.prediction) is not None:
        say(
            f"  predicted from {escape(predicted.source)}: "
            f"{predicted.tokens_per_second.format(',.0f')} tokens/s per worker, "
            f"{predicted.nonzeros_per_token.value:,.1f} nonzeros and "
            f"{predicted.bytes_per_token.value:,.0f} bytes per token, "
            f"{duration(predicted.seconds(predicted.rows, predicted.workers).value)} "
            f"with {several(predicted.workers, 'worker')}"
        )
    for shard, why in sorted(current.quarantined.items()):
        say(f"  [red]quarantined[/] {shard}: {escape(why)}")
