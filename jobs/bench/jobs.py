"""Every job over one store, as its users run it: seconds, activations a second, memory of all its processes.

python -m jobs.bench jobs        # a lake of 100 million activations, made without a model

A command that this latentlake does not have, or that fails, is reported in the table, and the next one runs.
To add a job, add a line to `JOBS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml

from jobs.bench import scale
from jobs.bench.report import Section
from jobs.bench.watched import watched
from jobs.terminal.console import console
from pipeline.store import FeatureStore

STORE, OUT = "{store}", "{out}"
"""Stand for the store, and for a folder that is new for each job."""

JOBS: dict[str, tuple[str, ...]] = {
    "stats": ("stats", STORE),
    "profile": ("profile", STORE),
    "rank": ("rank", STORE),
    "examples": ("examples", STORE),
    "top, a feature": ("top", STORE, "100"),
    "coactivation": ("coactivation", STORE),
    "cluster": ("cluster", STORE),
    "compact": ("compact", STORE),
    "top, compacted": ("top", STORE, "100"),
    "verify": ("verify", STORE),
    "diff, with itself": ("diff", STORE, STORE),
    "plots": ("plots", STORE),
    "report, 1,000 features": ("report", STORE, "--out", OUT, "--features", "top:1000:n_active"),
    "feature": ("feature", STORE, "100"),
    "heatmap": ("heatmap", STORE, "--out", f"{OUT}.png", "--ranking", "n_active:0:50"),
    "export neuronpedia, 4,096 features": (
        "export", "neuronpedia", STORE, "--out", OUT, "--model", "made", "--layer", "0",
        "--features", "top:4096:n_active",
    ),
    "export circuit-tracer, 4,096 features": (
        "export", "circuit-tracer", STORE, "--out", OUT, "--layer", "0", "--features", "top:4096:n_active",
    ),
    "export delphi": ("export", "delphi", STORE, "--out", OUT),
    "export anndata": ("export", "anndata", STORE, "--out", OUT),
    "export anndata, by document": ("export", "anndata", STORE, "--out", OUT, "--rows", "document"),
}  # fmt: skip
"""By name, the command and its arguments, in the order in which they run: later ones find earlier tables."""


@dataclass(frozen=True)
class Result:
    """One job; `said` is empty where it ended well, and then the rest holds."""

    name: str
    seconds: float = 0.0
    rate: float = 0.0
    peak_gb: float = 0.0
    said: str = ""


def run(folder: Path, threads: int, nonzeros: float = 1e8) -> Section:  # noqa: ARG001 - jobs take what pays
    """Make the lake, by the commands of its users and in one process, then measure every job."""
    config = scale.write_run_file(folder, nonzeros, workers=1)
    here = {"extract": {"executor": "in_process", "cpus_per_worker": 1}}
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | here))
    for command in ("tokenize", "extract"):
        watched(["jobs", command, str(config)])
    store = FeatureStore.open(folder / "store")
    nnz = sum(receipt.nnz for receipt in store.receipts(scale.SITE).values())
    known, results = commands(), list[Result]()
    for number, (name, arguments) in enumerate(JOBS.items()):
        given = [word.format(store=folder / "store", out=folder / f"out-{number}") for word in arguments]
        results.append(measure(name, given, nnz, known))
        console.print(f"  {name}: {results[-1].said or f'{results[-1].seconds:,.1f} s'}")
    return section(store, nnz, results)


def commands() -> set[str]:
    """Names of the commands that there are."""
    import typer.main

    from jobs.cli import app

    group = typer.main.get_command(app)
    return set(getattr(group, "commands", {}))


def measure(name: str, arguments: Sequence[str], nnz: int, known: set[str]) -> Result:
    """Run one command; the result of one that cannot be run, or fails, holds the reason."""
    if arguments[0] not in known:
        return Result(name, said="not there yet")
    try:
        done = watched(["jobs", *arguments])
    except RuntimeError as error:
        return Result(name, said=f"failed: {str(error).strip().splitlines()[-1][:100]}")
    return Result(name, done.seconds, nnz / done.seconds, done.peak_gb)


def section(store: FeatureStore, nnz: int, results: Sequence[Result]) -> Section:
    """The table of all jobs."""
    rows = [
        [r.name, r.said, "", ""]
        if r.said
        else [r.name, f"{r.seconds:,.1f}", f"{r.rate / 1e6:,.1f}", f"{r.peak_gb:.2f}"]
        for r in results
    ]
    title = (
        f"{nnz:,} activations in {store.totals(scale.SITE).rows:,} rows, {len(store.shards)} shards, d_sae "
        f"{store.site(scale.SITE).d_sae:,}: whole commands, peak of all their processes"
    )
    raw = [asdict(result) | {"nnz": nnz} for result in results]
    return Section("jobs", title, ("job", "seconds", "M activations/s", "peak GB"), rows, raw)
