"""The command line. Each command imports its job when it is called, so that `--help` answers at once."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.store import FeatureStore
    from schemas.run_file import RunFile

app = typer.Typer(
    help="The feature lake for sparse autoencoders.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RunPath = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="Run file.")]
StoreText = Annotated[
    str, typer.Argument(metavar="STORE", help="Store folder or URL (s3://…), or the run file that names it.")
]
SiteName = Annotated[str | None, typer.Option("--site", help="Site; may be left out where there is one.")]
AcceptEnvironment = Annotated[
    bool,
    typer.Option("--accept-environment", help="Join a pass begun with other library versions or devices."),
]
LogJson = Annotated[
    Path | None, typer.Option("--log-json", help="Add every event of the driver to this file, as JSON lines.")
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes, or Ray tasks at once. Default: as many as pay."),
]
Address = Annotated[
    str | None, typer.Option("--address", help="Ray cluster to run on. Default: this machine.")
]
Append = Annotated[bool, typer.Option("--append", help="Add the corpus to a store that holds another.")]


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

    with _logged(log_json):
        job(_run_file(path), append=append, accept_environment=accept_environment)


@app.command()
def tokenize(path: RunPath, append: Append = False) -> None:
    """Cut the corpus into token shards, once."""
    from jobs.tokenize import tokenize as job

    job(_run_file(path), append=append)


@app.command()
def extract(path: RunPath, accept_environment: AcceptEnvironment = False, log_json: LogJson = None) -> None:
    """Run model and SAEs over the token shards; what is committed stays."""
    from jobs.extract import extract as job

    with _logged(log_json):
        job(_run_file(path), accept_environment=accept_environment)


@app.command()
def submit(
    path: RunPath,
    options: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTIONS]", help="Options of `latentlake run` there.")
    ] = None,
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard.")
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

    opened, _ = _open(store)
    with choose_tasks(opened, workers, address) as tasks:
        for name in _sites(opened, site):
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

    opened, config = _open(store)
    always = (config.rank if config else Rank.model_validate({})).by
    columns = tuple(dict.fromkeys([*(by or ()), *always]))
    for name in _sites(opened, site):
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

    opened, config = _open(store)
    with choose_tasks(opened, workers, address) as tasks:
        for name in _sites(opened, site):
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

    opened, _ = _open(store)
    with choose_tasks(opened, workers, address) as tasks:
        for name in _sites(opened, site):
            job(opened, name, tasks, k=k, support=support)


@app.command()
def plots(store: StoreText, site: SiteName = None) -> None:
    """Draw the figures from the stored tables."""
    from jobs.plots import plots as job

    opened, _ = _open(store)
    for name in _sites(opened, site):
        for path in job(opened, name):
            typer.echo(path)


@app.command()
def plan(
    path: RunPath,
    workers: Annotated[int | None, typer.Option(help="Workers. Default: the run file's.", min=1)] = None,
    seconds: Annotated[float, typer.Option(help="How long to measure.", min=1)] = 60.0,
) -> None:
    """Try a run for a minute; predict its rate, nonzeros, bytes and hours."""
    from jobs.plan import plan as job

    job(_run_file(path), workers, seconds)


@app.command()
def status(
    store: StoreText,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every five seconds.")] = False,
) -> None:
    """What the store holds, and how far each pass is; reads the store alone."""
    from jobs.status import status as job
    from jobs.status import watch as job_again

    (job_again if watch else job)(_root(store))


@app.command()
def verify(store: StoreText, workers: Workers = None, address: Address = None) -> None:
    """Check every checksum, and recompute every statistic from the raw activations."""
    from jobs.parallel import choose_tasks
    from jobs.verify import verify as job

    opened, _ = _open(store)
    with choose_tasks(opened, workers, address) as tasks:
        job(opened, tasks)


@app.command()
def compact(
    store: StoreText, site: SiteName = None, workers: Workers = None, address: Address = None
) -> None:
    """Merge the shards' postings into one file per feature block, which queries then read."""
    from jobs.compact import compact as job
    from jobs.parallel import choose_tasks

    opened, _ = _open(store)
    with choose_tasks(opened, workers, address) as tasks:
        for name in _sites(opened, site):
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

    opened, _ = _open(store)
    names = _sites(opened, site)
    if len(names) > 1:
        raise _input_error(f"the store has several sites ({', '.join(names)}): choose one with --site")
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

    job(_open(store)[0], older_than, dry_run=dry_run, force=force)


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
) -> None:
    """Compare two stores of one SAE, feature by feature: two corpora, or two models over one corpus."""
    from jobs.diff import diff as job
    from jobs.diff import sides

    job(*sides(_open(a)[0], _open(b)[0], site, site_b), out=out, top=top)


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
    """Run the command line; what the user can mend is one sentence on stderr and exit code 2.

    A fault of ours ends with its traceback and exit code 3.
    """
    warnings.showwarning = _warn
    asked_to_end: list[int] = []
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, partial(_end, asked_to_end))
    try:
        _command(arguments)
    finally:
        if asked_to_end:  # whatever Ray and click made of it
            sys.exit(128 + asked_to_end[0])


def _end(asked: list[int], number: int, frame: object) -> None:  # noqa: ARG001 - what a handler is given
    """End at once, on the way out ending the workers: what is committed stays, so nothing else needs care."""
    asked.append(number)
    raise SystemExit(128 + number)


def _command(arguments: list[str] | None) -> None:
    from schemas.errors import InputError

    try:
        app(args=arguments, prog_name="latentlake")
    except InputError as error:
        message = str(error)
    except OSError as error:
        message = (
            f"{error.filename or 'input or output'}: {error.strerror or error}; free or fix it and run again"
        )
    except Exception:  # noqa: BLE001 - a fault of ours; 1 would be check-sae's verdict
        traceback.print_exc()
        sys.exit(3)
    sys.stderr.write(f"latentlake: {message}\n")
    sys.exit(2)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    """Print a warning as a line, without the place in the code."""
    sys.stderr.write(f"warning: {message}\n")


def _input_error(message: str) -> Exception:
    from schemas.errors import InputError

    return InputError(message)


@contextmanager
def _logged(path: Path | None) -> Iterator[None]:
    """Events of this process go to the end of a file, where one is asked for."""
    if path is None:
        yield
        return
    import logging

    from pipeline import logs

    with path.open("a", encoding="utf-8", buffering=1) as file:
        logs.start(file)
        try:
            yield
        finally:
            logs.LOGGER.handlers = [logging.NullHandler()]


def _run_file(path: Path) -> RunFile:
    from schemas.run_file import load_run_file

    return load_run_file(path)


def _root(store: str) -> str:
    """The store's folder or URL, given itself or a run file."""
    return _run_file(Path(store)).store.root if store.endswith((".yaml", ".yml")) else store


def _open(store: str) -> tuple[FeatureStore, RunFile | None]:
    """Open a store, given its folder, its URL or a run file."""
    from pipeline.store import FeatureStore

    run_file = _run_file(Path(store)) if store.endswith((".yaml", ".yml")) else None
    return FeatureStore.open(run_file.store.root if run_file else store), run_file


def _sites(store: FeatureStore, site: str | None) -> list[str]:
    """The sites that a command is about."""
    if site is not None and site not in store.sites:
        raise _input_error(f"the store has no site {site!r}; it has {', '.join(store.sites) or 'none yet'}")
    if not store.sites:
        raise _input_error(f"{store.layout.root} has no site yet: run `latentlake extract` first")
    return [site] if site is not None else list(store.sites)


if __name__ == "__main__":
    main()
