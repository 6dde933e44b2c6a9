"""`latentlake run RUN.yaml`: the whole line; each step does only what is not done."""

from __future__ import annotations

from jobs.console import say
from jobs.extract import extract_resolved
from jobs.tokenize import tokenize_resolved
from pipeline.plan import resolve
from pipeline.run import Extraction
from pipeline.store import FeatureStore
from schemas.run_file import RunFile

TABLES = ("features", "rankings", "feature_clusters", "context_clusters")


def run(run_file: RunFile, *, append: bool = False, accept_environment: bool = False) -> Extraction:
    """Tokenize, extract, stats, rank, cluster, plots."""
    resolved, warnings = resolve(run_file)
    for warning in warnings:
        say(f"[yellow]warning[/]: {warning}")
    tokenize_resolved(resolved, append=append)
    result = extract_resolved(resolved, accept_environment=accept_environment)
    store = FeatureStore.open(resolved.store.root)
    for site in result.plan.sites:
        if not is_fresh(store, site.name):
            derive(store, site.name, resolved)
        else:
            say(f"[bold]tables[/] of {site.name}: nothing to do, they are up to date")
    return result


def derive(store: FeatureStore, site: str, run_file: RunFile) -> None:
    """All tables and figures of one site (the libraries behind them take seconds to import)."""
    from jobs.cluster import cluster
    from jobs.plots import plots
    from jobs.rank import rank
    from jobs.stats import stats

    stats(store, site)
    rank(store, site, run_file.rank.by)
    cluster(store, site, run_file.cluster)
    figures = plots(store, site)
    say(f"[bold]plots[/] {len(figures)} files in {store.layout.figures(site)}")


def is_fresh(store: FeatureStore, site: str) -> bool:
    """Whether all tables and some figures of the site exist and were made from the receipts there are."""
    fresh = all(store.has_table(site, name) and not store.is_stale(site, name) for name in TABLES)
    return fresh and any(store.layout.figures(site).glob("*.png"))


if __name__ == "__main__":
    import sys

    from jobs.cli import main

    main(["run", *sys.argv[1:]])
