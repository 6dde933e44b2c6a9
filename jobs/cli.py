"""The command line. Each command imports its job when it is called, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.cli_images import images
from jobs.cli_tables import tables
from jobs.cli_views import views
from jobs.command.exits import run_app
from jobs.command.options import (
    AcceptEnvironment,
    Address,
    Append,
    LogJson,
    RunPath,
    SiteName,
    StoreText,
    Workers,
    check_numbers,
    logged,
    open_store,
    read_run_file,
    root_of,
    sites_of,
)
from jobs.export.commands import app as export_app

app = typer.Typer(
    help="The feature lake for sparse autoencoders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(tables)
app.add_typer(views)
app.add_typer(images)
app.add_typer(export_app, name="export")


@app.command()
def demo(
    tokens: Annotated[str, typer.Option(help="Tokens to run, or 'all'.")] = "100000",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the store. Default: out/demo, or out/synthetic.")
    ] = None,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Vectors with a known answer, compared with it; no model.")
    ] = False,
) -> None:
    """A real model, a real SAE and a real corpus become a store, tables and figures."""
    if synthetic:
        from jobs.studies.known.demo_synthetic import demo_synthetic

        demo_synthetic(out or Path("out/synthetic"))
        return
    from jobs.studies.demo.demo import demo as job

    job(tokens, out or Path("out/demo"))


@app.command()
def run(
    path: RunPath,
    append: Append = False,
    accept_environment: AcceptEnvironment = False,
    log_json: LogJson = None,
) -> None:
    """Tokenize, extract, compute tables, figures and the report; skips what is already done."""
    from jobs.lake.run import run as job

    with logged(log_json):
        job(read_run_file(path), append=append, accept_environment=accept_environment)


@app.command()
def tokenize(path: RunPath, append: Append = False) -> None:
    """Cut the corpus into token shards, once."""
    from jobs.lake.tokenize import tokenize as job

    job(read_run_file(path), append=append)


@app.command()
def extract(path: RunPath, accept_environment: AcceptEnvironment = False, log_json: LogJson = None) -> None:
    """Run model and SAEs over the token shards; what is committed stays."""
    from jobs.lake.extract import extract as job

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
    """Run RUN.yaml on a Ray cluster, stream its log, and exit with the driver's exit code."""
    from jobs.lake.submit import submit as job

    raise typer.Exit(job(path, address, working_dir, options or ()))


@app.command()
def plan(
    path: RunPath,
    workers: Annotated[int | None, typer.Option(help="Workers. Default: the run file's.", min=1)] = None,
    seconds: Annotated[float, typer.Option(help="How long to measure.", min=1)] = 60.0,
) -> None:
    """Try a run for a minute; predict its rate, nonzeros, bytes and hours."""
    from jobs.lake.plan import plan as job

    job(read_run_file(path), workers, seconds)


@app.command()
def status(
    store: StoreText,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every five seconds.")] = False,
) -> None:
    """What the store holds, and how far each pass is; reads the store alone."""
    from jobs.lake.status import status as job
    from jobs.lake.status import watch as job_again

    (job_again if watch else job)(root_of(store))


@app.command()
def verify(store: StoreText, workers: Workers = None, address: Address = None) -> None:
    """Check every checksum, and recompute every statistic from the raw activations."""
    from jobs.command.tasks import choose_tasks
    from jobs.lake.verify import verify as job

    opened, _ = open_store(store)
    with choose_tasks(opened, workers, address) as tasks:
        job(opened, tasks)


@app.command()
def compact(
    store: StoreText, site: SiteName = None, workers: Workers = None, address: Address = None
) -> None:
    """Merge the shards' postings into one file per feature block, which queries then read."""
    from jobs.command.tasks import choose_tasks
    from jobs.lake.compact import compact as job

    opened, _ = open_store(store)
    with choose_tasks(opened, workers, address) as tasks:
        for name in sites_of(opened, site):
            job(opened, name, tasks)


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
    """Remove attempts without a receipt, idle compactions, temporary files, pieces of dropped sites."""
    from jobs.lake.gc import gc as job

    job(open_store(store)[0], older_than, dry_run=dry_run, force=force)


@app.command()
def drop(
    store: StoreText,
    pass_name: Annotated[
        str | None, typer.Option("--pass", help="A pass, with its sites, their tables and figures.")
    ] = None,
    site: Annotated[
        str | None, typer.Option("--site", help="A site; with --table, the site whose table goes.")
    ] = None,
    table: Annotated[
        str | None, typer.Option("--table", help="A derived table, of one site or of all.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a pass, a site or a derived table for good; says what that is, and asks."""
    from jobs.lake.drop import drop as job

    job(root_of(store), pass_name=pass_name, site=site, table=table, yes=yes)


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
    from jobs.command.tasks import choose_tasks
    from jobs.tables.diff import diff as job
    from jobs.tables.diff import sides

    first, second = open_store(a)[0], open_store(b)[0]
    with choose_tasks(first, workers, address) as tasks:
        job(*sides(first, second, site, site_b), tasks, out=out, top=top)


@app.command("make-dictionary")
def make_dictionary(
    path: RunPath,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the truth and the SAEs.")],
    noise: Annotated[
        list[float] | None,
        typer.Option(help="Standard deviation of noise on an SAE's weights; may be repeated.", min=0),
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="SAEs' thresholds, as a share of each feature's mean; 0: ReLU.", min=0)
    ] = 0.5,
    shuffle: Annotated[
        bool, typer.Option("--shuffle/--no-shuffle", help="Put an SAE's features in a random order.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of noise and order.", min=0)] = 0,
) -> None:
    """Write the truth of the run file's corpus of kind dictionary, and SAEs that are made of it."""
    from jobs.studies.known.make_dictionary import make_dictionary as job
    from pipeline.synthetic.dictionary.sae import SaeOptions

    made = [SaeOptions(level, threshold, shuffle, seed) for level in noise or [0.0]]
    job(read_run_file(path).corpus, out, made)


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
    from jobs.evaluation.check_sae import Asked
    from jobs.evaluation.check_sae import check_sae as job

    asked = Asked(sae, model, corpus, text_column, tokens, hook_name, loader, tokenizer, device, json_file)
    if not job(asked):
        raise typer.Exit(1)


check_numbers(app)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; see `exits.run_app` for how it ends."""
    run_app(app, arguments)
