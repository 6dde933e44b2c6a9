"""What the commands share: the types of their arguments, and what opens a store, a run file, a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.command.completion import complete_run_file, complete_site, complete_store
from schemas.errors import InputError

if TYPE_CHECKING:
    from pipeline.store import FeatureStore
    from schemas.run.file import RunFile

RunPath = Annotated[
    Path, typer.Argument(metavar="RUN.yaml", help="Run file.", autocompletion=complete_run_file)
]
StoreText = Annotated[
    str,
    typer.Argument(
        metavar="STORE",
        help="Store folder or URL (s3://…), or the run file that names it.",
        autocompletion=complete_store,
    ),
]
SiteName = Annotated[
    str | None,
    typer.Option("--site", help="Site; can be omitted if there is only one.", autocompletion=complete_site),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the rows as JSON on standard output, and all else on standard error."),
]
AS_JSON = "what --json prints"
"""Annotates what a job returns where the command takes --json: Annotated[pl.DataFrame, AS_JSON]."""
OneSite = Annotated[str, "the one that --site names, or the only one"]
"""Of a job's parameter `site`: it is called for one site, not for each in turn."""
AcceptEnvironment = Annotated[
    bool,
    typer.Option(
        "--accept-environment", help="Continue a pass that was begun with other library versions or devices."
    ),
]
LogJson = Annotated[
    Path | None,
    typer.Option("--log-json", help="Append every event of the driver to this file, as JSON lines."),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Number of processes, or of Ray tasks at once. Default: as many as are worthwhile.",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray cluster to run on: its Ray address, host:6379 (not the dashboard's URL). Default: this "
        "machine.",
    ),
]
ModelWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Number of processes, or of Ray tasks at once, each of which loads the model. Default: one "
        "process.",
    ),
]
ModelPath = Annotated[
    str | None,
    typer.Option("--model", help="Current location of the model's files. Default: the original one."),
]
SaePath = Annotated[
    str | None, typer.Option("--sae", help="Current location of the SAE's files. Default: the original one.")
]
TokenizerPath = Annotated[
    str | None, typer.Option("--tokenizer", help="Current location of the lake's tokenizer.")
]
DeviceName = Annotated[
    str,
    typer.Option(
        "--device", help="auto (a GPU if there is one; with --address, whatever the pass used), cpu or cuda."
    ),
]
LocalDevice = Annotated[
    str, typer.Option("--device", help="auto (a GPU if there is one, or else the CPU), cpu or cuda.")
]
DeviceOfPass = Annotated[
    str,
    typer.Option("--device", help="auto (what the pass used if it is here, or else the CPU), cpu or cuda."),
]
FeatureNumber = Annotated[int, typer.Argument(help="Number of the feature.")]
Before = Annotated[int, typer.Option("--before", help="Tokens shown before the firing one.", min=0)]
After = Annotated[int, typer.Option("--after", help="Tokens shown after the firing one.", min=0)]
Maximum = Annotated[
    float | None,
    typer.Option(
        "--maximum", help="Activation that gets the full shade. Default: the feature's strongest.", min=0
    ),
]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write the shaded texts to an HTML page.")
]
FigureLanguage = Annotated[
    str,
    typer.Option(
        "--language",
        help="Language of titles and axes: en, ko, or both; text without a Korean version is in English.",
    ),
]
ClassifierFolder = Annotated[
    str | None,
    typer.Option(
        "--model", help="Folder of the classifier and its image decoder. Default: that of the pass."
    ),
]
Append = Annotated[bool, typer.Option("--append", help="Add the corpus to a store that already holds one.")]


@contextmanager
def logged(path: Path | None) -> Iterator[None]:
    """Events of this process go to the end of a file, where one is given."""
    if path is None:
        yield
        return
    import logging

    from pipeline.monitor import logs

    with path.open("a", encoding="utf-8", buffering=1) as file:
        logs.start(file)
        try:
            yield
        finally:
            logs.LOGGER.handlers = [logging.NullHandler()]


def read_run_file(path: Path) -> RunFile:
    """The run file, checked."""
    from schemas.run.file import load_run_file

    return load_run_file(path)


def root_of(store: str) -> str:
    """The store's folder or URL, given itself or a run file."""
    return read_run_file(Path(store)).store.root if store.endswith((".yaml", ".yml")) else store


def open_store(store: str) -> tuple[FeatureStore, RunFile | None]:
    """Open a store, given its folder, its URL or a run file."""
    from pipeline.store import FeatureStore

    run_file = read_run_file(Path(store)) if store.endswith((".yaml", ".yml")) else None
    return FeatureStore.open(run_file.store.root if run_file else store), run_file


def sites_of(store: FeatureStore, site: str | None) -> list[str]:
    """The sites that a command about features is about: the one named, or all that have features."""
    if site is not None and site not in store.sites:
        raise InputError(f"the store has no site {site!r}; it has {', '.join(store.sites) or 'none yet'}")
    if not store.sites:
        raise InputError(f"{store.layout.root} has no site yet: run `latentlake extract` first")
    if site is not None:
        return [store.require_features(site).name]
    with_sae = [name for name, info in store.sites.items() if info.has_sae]
    return with_sae or [store.require_features(next(iter(store.sites))).name]


def one_site(store: FeatureStore, site: str | None) -> str:
    """The site that a command about one feature means."""
    names = sites_of(store, site)
    if len(names) > 1:
        raise InputError(f"the store has several sites ({', '.join(names)}): choose one with --site")
    return names[0]
