"""The command line. Each command imports its job when it is called, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.arguments import (
    AcceptEnvironment,
    Address,
    Append,
    LogJson,
    RunPath,
    SiteName,
    StoreText,
    Workers,
    input_error,
    logged,
    open_store,
    read_run_file,
    root_of,
    sites_of,
)
from jobs.exits import run_app

app = typer.Typer(
    help="The feature lake for sparse autoencoders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    tokens: Annotated[str, typer.Option(help="Tokens to run, or 'all'.")] = "100000",
    out: Annotated[Path, typer.Option(help="Folder of the store.")] = Path("out/demo"),
) -> None:
    """A real model, a real SAE and a real corpus become a store, tables and figures."""
    from jobs.demo import demo as job

    job(tokens, out)


@app.command()
def run(
    path: RunPath,
    append: Append = False,
    accept_environment: AcceptEnvironment = False,
    log_json: LogJson = None,
) -> None:
    """Tokenize, extract, stats, rank, cluster and plots, each only as far as it is not done."""
    from jobs.run import run as job

    with logged(log_json):
        job(read_run_file(path), append=append, accept_environment=accept_environment)


@app.command()
def tokenize(path: RunPath, append: Append = False) -> None:
    """Cut the corpus into token shards, once."""
    from jobs.tokenize import tokenize as job

    job(read_run_file(path), append=append)


@app.command()
def extract(path: RunPath, accept_environment: AcceptEnvironment = False, log_json: LogJson = None) -> None:
    """Run model and SAEs over the token shards; what is committed stays."""
    from jobs.extract import extract as job

    with logged(log_json):
        job(read_run_file(path), accept_environment=accept_environment)


@app.command()
def submit(
    path: RunPath,
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTIONS]", help="Options of `latentlake run` there.")
    ] = None,
    address: Annotated[
        str,
        typer.Option(
            envvar="RAY_API_SERVER_ADDRESS",
            help="The URL of the cluster's dashboard, http://host:8265 (no Ray address).",
        ),
    ] = "http://127.0.0.1:8265",
    working_dir: Annotated[
        Path, typer.Option(help="Folder that the cluster gets a copy of; the run file lies in it.")
    ] = Path(),
) -> None:
    """Run RUN.yaml on a Ray cluster, follow its log, and end as it ends."""
    from jobs.submit import submit as job

    raise typer.Exit(job(path, address, working_dir, options or ()))


@app.command()
def stats(store: StoreText, site: SiteName = None, workers: Workers = None, address: Address = None) -> None:
    """Fold the shards' partials into the feature table, L0 counts and examples."""
    from jobs.parallel import choose_tasks
    from jobs.stats import stats as job

    opened, _ = open_store(store)
    with choose_tasks(opened, workers, address) as tasks:
        for name in sites_of(opened, site):
            job(opened, name, tasks)


@app.command()
def rank(
    store: StoreText,
    site: SiteName = None,
    by: Annotated[
        list[str] | None, typer.Option(help="Column of the feature table; may be repeated.")
    ] = None,
    window: Annotated[str | None, typer.Option(help="Print these ranks, as START:STOP (2000:2050).")] = None,
    ascending: Annotated[bool, typer.Option("--ascending", help="Smallest first, in the window.")] = False,
) -> None:
    """Write the rankings of features by columns of the feature table, or print a window of one."""
    from jobs.rank import rank as job
    from jobs.rank import show_window
    from schemas.run_file import Rank

    opened, config = open_store(store)
    always = (config.rank if config else Rank.model_validate({})).by
    columns = tuple(dict.fromkeys([*(by or ()), *always]))
    for name in sites_of(opened, site):
        if window is None:
            job(opened, name, columns)
        else:
            show_window(opened, name, columns[0], window, descending=not ascending)


@app.command()
def cluster(
    store: StoreText, site: SiteName = None, workers: Workers = None, address: Address = None
) -> None:
    """Cluster features by decoder direction, and contexts by the features that fire in them."""
    from jobs.cluster import cluster as job
    from jobs.parallel import choose_tasks
    from schemas.run_file import Cluster

    opened, config = open_store(store)
    with choose_tasks(opened, workers, address) as tasks:
        for name in sites_of(opened, site):
            job(opened, name, config.cluster if config else Cluster.model_validate({}), tasks)


@app.command()
def coactivation(
    store: StoreText,
    site: SiteName = None,
    k: Annotated[int, typer.Option("-k", help="Neighbours of each feature.", min=1)] = 20,
    support: Annotated[int, typer.Option(help="Rows that a pair must share.", min=1)] = 10,
    workers: Workers = None,
    address: Address = None,
) -> None:
    """The neighbours of each feature: those that fire on the same rows, by Jaccard index."""
    from jobs.coactivation import coactivation as job
    from jobs.parallel import choose_tasks

    opened, _ = open_store(store)
    with choose_tasks(opened, workers, address) as tasks:
        for name in sites_of(opened, site):
            job(opened, name, tasks, k=k, support=support)


@app.command()
def plots(store: StoreText, site: SiteName = None) -> None:
    """Draw the figures from the stored tables."""
    from jobs.plots import plots as job

    opened, _ = open_store(store)
    for name in sites_of(opened, site):
        for path in job(opened, name):
            typer.echo(path)


@app.command()
def report(
    store: StoreText,
    site: SiteName = None,
    features: Annotated[
        str,
        typer.Option(help="Features that get a page: all, top:N[:COLUMN], or numbers and ranges, 5,100:200."),
    ] = "all",
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the report. Default: STORE/report.")
    ] = None,
    workers: Workers = None,
) -> None:
    """Write a static site of the features, which opens from disk without a server."""
    from jobs.report.build import report as job
    from jobs.report.build import tasks_for
    from pipeline.store.object_path import store_path

    opened, _ = open_store(store)
    with tasks_for(opened, workers) as tasks:
        names = sites_of(opened, site)
        typer.echo(job(opened, names, tasks, out=store_path(out) if out else None, features=features))


@app.command()
def plan(
    path: RunPath,
    workers: Annotated[int | None, typer.Option(help="Workers. Default: the run file's.", min=1)] = None,
    seconds: Annotated[float, typer.Option(help="How long to measure.", min=1)] = 60.0,
) -> None:
    """Try a run for a minute; predict its rate, nonzeros, bytes and hours."""
    from jobs.plan import plan as job

    job(read_run_file(path), workers, seconds)


@app.command()
def status(
    store: StoreText,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every five seconds.")] = False,
) -> None:
    """What the store holds, and how far each pass is; reads the store alone."""
    from jobs.status import status as job
    from jobs.status import watch as job_again

    (job_again if watch else job)(root_of(store))


@app.command()
def verify(store: StoreText, workers: Workers = None, address: Address = None) -> None:
    """Check every checksum, and recompute every statistic from the raw activations."""
    from jobs.parallel import choose_tasks
    from jobs.verify import verify as job

    opened, _ = open_store(store)
    with choose_tasks(opened, workers, address) as tasks:
        job(opened, tasks)


@app.command()
def compact(
    store: StoreText, site: SiteName = None, workers: Workers = None, address: Address = None
) -> None:
    """Merge the shards' postings into one file per feature block, which queries then read."""
    from jobs.compact import compact as job
    from jobs.parallel import choose_tasks

    opened, _ = open_store(store)
    with choose_tasks(opened, workers, address) as tasks:
        for name in sites_of(opened, site):
            job(opened, name, tasks)


@app.command()
def top(
    store: StoreText,
    feature: Annotated[int, typer.Argument(help="Number of the feature.")],
    site: SiteName = None,
    k: Annotated[int, typer.Option("-k", help="How many rows.", min=1)] = 20,
    where: Annotated[
        list[str] | None, typer.Option(help="Keep rows with this label, as COLUMN=VALUE; may be repeated.")
    ] = None,
) -> None:
    """The strongest contexts of a feature, the firing token marked."""
    from jobs.top import top as job

    opened, _ = open_store(store)
    names = sites_of(opened, site)
    if len(names) > 1:
        raise input_error(f"the store has several sites ({', '.join(names)}): choose one with --site")
    job(opened, names[0], feature, k=k, where=where or [])


@app.command()
def gc(
    store: StoreText,
    older_than: Annotated[
        float,
        typer.Option(
            metavar="HOURS",
            help="In hours since its last file was written; longer than a shard takes.",
            min=0,
        ),
    ] = 24,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Allow less than 1 hour, while nothing writes into the store."),
    ] = False,
) -> None:
    """Remove attempts without a receipt, superseded compactions and temporary files; safe beside a run."""
    from jobs.gc import gc as job

    job(open_store(store)[0], older_than, dry_run=dry_run, force=force)


@app.command()
def diff(
    a: StoreText,
    b: StoreText,
    site: SiteName = None,
    site_b: Annotated[str | None, typer.Option("--site-b", help="Site of B. Default: that of A.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.parquet", help="Write the whole table.")
    ] = None,
    top: Annotated[int, typer.Option("--top", help="How many of the clearest changes to print.", min=0)] = 20,
    workers: Workers = None,
    address: Address = None,
) -> None:
    """Compare two stores of one SAE, feature by feature: two corpora, or two models over one corpus."""
    from jobs.diff import diff as job
    from jobs.diff import sides
    from jobs.parallel import choose_tasks

    first, second = open_store(a)[0], open_store(b)[0]
    with choose_tasks(first, workers, address) as tasks:
        job(*sides(first, second, site, site_b), tasks, out=out, top=top)


@app.command("check-sae")
def check_sae(
    sae: Annotated[str, typer.Argument(metavar="SAE", help="SAE: a folder, the file of its weights, hf:...")],
    model: Annotated[
        str | None, typer.Option(help="Model folder or name. Default: what the SAE's files say.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="File, folder, glob or dataset. Default: the demo's speeches.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column or key of the corpus' text.")] = "text",
    tokens: Annotated[int, typer.Option(help="Tokens to run.", min=1)] = 20_000,
    hook_name: Annotated[
        str | None, typer.Option(help="Where x is read. Default: what the SAE's files say.")
    ] = None,
    loader: Annotated[str, typer.Option(help="The run file's model.loader.")] = "transformer_lens",
    tokenizer: Annotated[
        str | None, typer.Option(help="Tokenizer folder or name. Default: the model's.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers to this file.")] = None,
) -> None:
    """Whether an SAE explains a model's activations; names the likely mistake, and ends with 1, if not."""
    from jobs.check_sae import Asked
    from jobs.check_sae import check_sae as job

    asked = Asked(sae, model, corpus, text_column, tokens, hook_name, loader, tokenizer, device, json_file)
    if not job(asked):
        raise typer.Exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; see `exits.run_app` for how it ends."""
    run_app(app, arguments)


if __name__ == "__main__":
    main()
