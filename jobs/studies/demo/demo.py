"""`latentlake demo`: a real model, a real SAE and a real corpus, from text to figures."""

from __future__ import annotations

import math
import time
from importlib import resources
from pathlib import Path
from typing import Annotated

import polars as pl
import typer
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from jobs.lake.run import run
from jobs.lake.try_next import SUPPORT, best_features, say_next
from jobs.studies.demo.model import ensure_demo_model
from jobs.studies.known.demo_synthetic import demo_synthetic
from jobs.terminal.console import console, say
from jobs.terminal.outputs import write_once
from jobs.views.top import marked
from pipeline.run import Extraction
from pipeline.store import FeatureStore
from schemas.errors import InputError
from schemas.run.file import Derive, load_run_file

SITE, CONTEXT_SIZE = "l9", 128
SHOWN = 10
"""Features shown."""


def command(
    tokens: Annotated[
        str, typer.Option(help="Tokens to run, as many from the beginning of each address, or 'all'.")
    ] = "100000",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the store. Default: out/demo, or out/synthetic with --synthetic."),
    ] = None,
    synthetic: Annotated[
        bool,
        typer.Option(
            "--synthetic",
            help="Use vectors with a known answer instead of a model, and compare the results with it.",
        ),
    ] = False,
) -> None:
    """The demo, of text or of vectors with a known answer."""
    if synthetic:
        demo_synthetic(out or Path("out/synthetic"))
    else:
        demo(tokens, out or Path("out/demo"))


def demo(tokens: str, out: Path) -> None:
    """Run `tokens` tokens of the corpus ('all' for the whole) into `out`, and show what came of it."""
    began = time.monotonic()
    path = write_run_file(tokens, out)
    console.print(
        Panel(
            "SmolLM2-135M reads the State of the Union addresses since 1860; a sparse autoencoder of 4,608 "
            "features reads its residual stream after block 9; every nonzero activation is stored "
            f"in [bold]{escape(str(out))}[/].",
            title="latentlake demo",
        )
    )
    (result,) = run(load_run_file(path))
    summary(FeatureStore.open(out), result, time.monotonic() - began, path)


def write_run_file(tokens: str, out: Path) -> Path:
    """The demo's run file, next to its store's data: everything in it may be changed and run again."""
    if tokens != "all" and (not tokens.isdecimal() or len(tokens) > 18 or int(tokens) == 0):
        raise InputError(f"--tokens {tokens!r} is neither a positive number nor 'all'")
    limit, data = None if tokens == "all" else int(tokens), resources.files("jobs") / "demo_data"
    corpus = str(data / "sotu.parquet")
    content = {
        "corpus": {
            "kind": "text",
            "path": corpus,
            "text_column": "text",
            "label_columns": ["year", "president", "party"],
        },
        "tokens": {
            "context_size": CONTEXT_SIZE,
            "prepend_bos": True,
            "limit": limit,
            "document_limit": None if limit is None else _of_each(limit, corpus),
        },
        "model": {"loader": "transformer_lens", "path": str(ensure_demo_model())},
        "sites": [{"name": SITE, "sae": str(data / "smollm2-135m-l9")}],
        "store": {"root": str(out)},
        "extract": {"executor": "ray", "workers": 1, "cpus_per_worker": 2},
        "derive": {"jobs": [*Derive.model_validate({}).jobs, "logits"], "report": "all"},
    }
    return write_once(out, content)


def _of_each(limit: int, corpus: str) -> int:
    """The fewest tokens of each document with which all together reach the limit."""
    documents = pl.scan_parquet(corpus).collect().height
    # BOS takes a place of each context, and the separator one after each document
    return max(math.ceil(limit * (CONTEXT_SIZE - 1) / CONTEXT_SIZE / documents) - 1, 1)


def summary(store: FeatureStore, result: Extraction, seconds: float, path: Path) -> None:
    """What a person wants to know first, and what to try next."""
    features = store.scan_features(SITE).collect()
    tally, nnz, counted = result.tally, result.tally.nonzeros, store.totals(SITE).counted_rows
    dead = features.filter(pl.col("n_active") == 0).height
    table = Table(title=f"{tally.rows:,} tokens in {seconds:.0f} s", show_header=False)
    for name, value in {
        "extraction": f"{tally.rate:,.0f} tokens/s",
        "nonzeros": f"{nnz:,} ({nnz / counted:.1f} on each of {counted:,} counted rows)",
        "stored": f"{tally.size / nnz:.2f} bytes per nonzero, both layouts and statistics",
        "dead features": f"{dead / features.height:.2%} ({dead:,} of {features.height:,} never fired)",
    }.items():
        table.add_row(name, value)
    console.print(table)
    often = best_features(store, SITE).filter(pl.col("n_active") >= SUPPORT)
    console.print(_ranked(store, often.head(SHOWN)))
    say(
        f"Figures: [bold]{escape(str(store.layout.figures(SITE)))}[/]\n"
        f"Report: [bold]{escape(str(store.layout.report / 'index.html'))}[/], for a browser"
    )
    say_next(store)
    say(f"\nThe run file is {escape(str(path))}: change it, and `latentlake run {escape(str(path))}`.")


def _ranked(store: FeatureStore, best: pl.DataFrame) -> Table:
    """The features of largest sigma/mu, each with its strongest context."""
    table = Table(title=f"features by sigma/mu, among those active in at least {SUPPORT} rows")
    for column in ("feature", "sigma/mu", "frequency", "max", "strongest context"):
        table.add_column(column, justify="left" if "context" in column else "right", overflow="fold")
    for row in best.iter_rows(named=True):
        context = store.contexts(SITE, row["feature"], 1).row(0, named=True)
        table.add_row(
            str(row["feature"]),
            f"{row['sigma_over_mu']:.1f}",
            f"{row['frequency']:.2e}",
            f"{row['max_activation']:.1f}",
            marked(store, context["token_ids"], context["position"]),
        )
    return table
