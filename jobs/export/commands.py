"""The command line of `latentlake export FORMAT STORE`; each format is imported when it is asked for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.command.options import SiteName, StoreText, Workers, input_error, open_store, sites_of

if TYPE_CHECKING:
    from pipeline.store import FeatureStore
    from schemas.values import U32

app = typer.Typer(help="Write the store in a format that another tool reads.", no_args_is_help=True)

Out = Annotated[
    str,
    typer.Option("--out", metavar="DIR", help="New folder, or that of a former export, which is replaced."),
]
Features = Annotated[
    str,
    typer.Option(
        "--features", help="all, numbers and ranges (1,5,10:20), top:N:COLUMN, or ranks COLUMN:START:STOP."
    ),
]
Window = Annotated[
    int, typer.Option(help="Tokens shown of an example at most; of shorter contexts all.", min=2, max=4096)
]
Layer = Annotated[
    int | None, typer.Option(help="Layer of the site. Default: the number in its hook's name.", min=0)
]


@app.command()
def neuronpedia(
    store: StoreText,
    out: Out,
    site: SiteName = None,
    features: Features = "all",
    model: Annotated[str | None, typer.Option(help="Neuronpedia's id of the model (gpt2-small).")] = None,
    source_set: Annotated[str | None, typer.Option(help="Source set (res-jb). Default: the site.")] = None,
    layer: Layer = None,
    creator: Annotated[
        str,
        typer.Option(help="Neuronpedia's id of the user whose rows these are.", envvar="DEFAULT_CREATOR_ID"),
    ] = "clkht01d40000jv08hvalcvly",
    window: Window = 128,
    workers: Workers = None,
) -> None:
    """Neuronpedia's import: features and activations as jsonl.gz, with model, source set and source."""
    from jobs.command.tasks import choose_tasks
    from jobs.export.neuronpedia import export, names

    with (
        _exporting(store, out, "neuronpedia", site, features) as job,
        choose_tasks(job.store, workers) as tasks,
    ):
        for name, chosen in job.chosen.items():
            named = names(job.store, name, model, source_set, layer, creator)
            n = export(job.store, name, chosen, job.folder, tasks, named=named, window=window)
            job.said[name] = f"{n:,} examples as {named.model}/{named.source}"


@app.command("circuit-tracer")
def circuit_tracer(
    store: StoreText,
    out: Out,
    site: SiteName = None,
    features: Features = "all",
    layer: Layer = None,
    window: Window = 128,
    workers: Workers = None,
) -> None:
    """circuit-tracer's feature files: features/index.json.gz and a .bin for each layer (site)."""
    from jobs.command.tasks import choose_tasks
    from jobs.export.circuit_tracer import export, write_index
    from jobs.export.neuronpedia import layer_of

    with (
        _exporting(store, out, "circuit-tracer", site, features) as job,
        choose_tasks(job.store, workers) as tasks,
    ):
        layers: dict[int, dict[str, Any]] = {}
        folder = job.folder / "features"
        folder.mkdir()
        for name, chosen in job.chosen.items():
            number = layer if layer is not None else layer_of(job.store.site(name).hook_name)
            if number in layers:
                raise input_error(f"two sites would be layer {number}: export one --site at a time")
            layers[number] = export(job.store, name, chosen, folder, tasks, layer=number, window=window)
            job.said[name] = f"{layers[number]['offsets'][-1]:,} bytes as layer {number}"
        write_index(folder, layers)


@app.command()
def delphi(
    store: StoreText,
    out: Out,
    site: SiteName = None,
    features: Features = "all",
    hookpoint: Annotated[
        str | None, typer.Option(help="delphi's name of the hook (layers.9). Default: the site's hook.")
    ] = None,
    splits: Annotated[
        int | None, typer.Option(help="Files at most. Default: 5, or more of 2^25 activations.", min=1)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model whose tokenizer delphi loads. Default: the plan's.")
    ] = None,
) -> None:
    """Delphi's cache of latents: safetensors of locations, activations and tokens, for each hookpoint."""
    from jobs.export.delphi import export
    from jobs.export.folder import distinct_names, safe_name

    with _exporting(store, out, "delphi", site, features) as job:
        names = list(job.chosen)
        folders = distinct_names([job.store.site(name).hook_name for name in names], names)
        if hookpoint is not None:
            if len(names) > 1:
                raise input_error(
                    f"--hookpoint names one site, the store has {', '.join(names)}: give --site"
                )
            folders = [safe_name(hookpoint)]
        for name, folder in zip(names, folders, strict=True):
            plan = job.store.plans[job.store.site(name).pass_name]
            to = job.folder / "latents" / folder
            n = export(job.store, name, job.chosen[name], to, splits=splits, model=model or plan.model)
            job.said[name] = f"{n:,} activations as latents/{folder}"


@app.command()
def anndata(
    store: StoreText,
    out: Out,
    site: SiteName = None,
    features: Features = "all",
    rows: Annotated[str, typer.Option(help="What a row of X is: token, context or document.")] = "token",
    pool: Annotated[
        str,
        typer.Option(
            help="Of a context or document: sum, mean_all (zeros counted), max (the strongest) or last (row)."
        ),
    ] = "sum",
) -> None:
    """AnnData: <site>.zarr, rows (or contexts, documents) by features, read by anndata.read_zarr."""
    from typing import get_args

    from jobs.export.anndata_zarr import Pool, Rows, export

    for option, value, known in (("--rows", rows, get_args(Rows)), ("--pool", pool, get_args(Pool))):
        if value not in known:
            raise input_error(f"{option} {value!r} is not one of {', '.join(known)}")
    with _exporting(store, out, "anndata", site, features) as job:
        for name, chosen in job.chosen.items():
            n = export(job.store, name, chosen, job.folder, rows=rows, pool=pool)  # type: ignore[arg-type]
            job.said[name] = f"{n:,} {rows}s x {len(chosen):,} features as {name}.zarr"


class _Job:
    """What a format's command works on: the chosen features of each site, a new folder, what to say of it."""

    def __init__(self, store: FeatureStore, chosen: dict[str, U32], folder: Path) -> None:
        self.store, self.chosen, self.folder = store, chosen, folder
        self.said: dict[str, str] = {}


@contextmanager
def _exporting(store: str, out: str, kind: str, site: str | None, features: str) -> Iterator[_Job]:
    """Open the store, choose features, make the folder; tell of it at the end."""
    from rich.markup import escape

    from jobs.export.folder import new_export
    from jobs.tables.selection import select_features
    from jobs.terminal.console import say

    began = time.monotonic()
    opened, _ = open_store(store)
    sites = sites_of(opened, site)
    for name in sites:
        if not opened.committed(name):
            raise input_error(f"site {name!r} has no committed shard: run `latentlake extract` first")
    chosen = {name: select_features(opened, name, features) for name in sites}
    about = {"format": kind, "sites": sites, "features": features}
    with new_export(out, opened, about) as folder:
        job = _Job(opened, chosen, folder)
        yield job
    for name, text in job.said.items():
        say(f"[bold]export[/] {kind} {name}: {len(chosen[name]):,} features, {text}")
    say(f"written to {escape(out)} ({time.monotonic() - began:.1f} s)")
