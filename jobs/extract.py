"""`latentlake extract RUN.yaml`: run model and SAEs over the token shards (the job that needs the model)."""

from __future__ import annotations

import time
from typing import Any

from rich.markup import escape

from jobs.console import say, warn
from jobs.extract_progress import ExtractionProgress
from jobs.plan import show_comparison
from jobs.progress import size
from pipeline.executors.ledger import Failure
from pipeline.plan import resolve
from pipeline.prediction import Forecast
from pipeline.run import Extraction
from pipeline.run import extract as run_extraction
from pipeline.store.object_path import store_path
from pipeline.store.tokens import require_lake
from pipeline.tokenize import check_rule
from pipeline.tokenizer import load_tokenizer
from schemas.layout import DENSE, Layout
from schemas.records import Receipt
from schemas.run_file import CheckSae, RunFile


def extract(run: RunFile, *, accept_environment: bool = False) -> Extraction:
    """Commit every shard that is not committed yet."""
    resolved, warnings = resolve(run)
    warn(warnings)
    return extract_resolved(resolved, accept_environment=accept_environment)


def extract_resolved(run: RunFile, *, accept_environment: bool = False) -> Extraction:
    """The same for a run file that has every default filled in."""
    layout, began = Layout(store_path(run.store.root)), time.monotonic()
    require_lake(layout)
    assert run.tokens.tokenizer is not None
    check_rule(layout, run, load_tokenizer(run.tokens.tokenizer))
    watched = _Watched(layout)
    with watched.progress:
        result = run_extraction(
            layout,
            run,
            accept_environment=accept_environment,
            begin=watched.begin,
            observe=watched.observe,
            on_event=watched.on_event,
        )
    seconds = time.monotonic() - began
    _tell(result, seconds)
    _tell_quality(result, run.extract.check_sae)
    if watched.forecast.prediction is not None and result.fresh.shards:
        show_comparison(watched.forecast.prediction, result, seconds)
    return result


class _Watched:
    """What looks on while a run goes: progress, and the prediction that it will be compared with."""

    def __init__(self, layout: Layout) -> None:
        self.progress, self.forecast = ExtractionProgress(), Forecast(layout)

    def begin(self, extraction: Extraction) -> None:
        self.progress.begin(extraction)
        self.forecast.begin(
            extraction.plan.hash,
            extraction.plan.pass_name,
            extraction.rows - extraction.tally.rows,
            extraction.total - extraction.tally.shards,
            extraction.workers,
        )

    def on_event(self, **event: Any) -> None:
        self.progress.on_event(**event)
        if event["event"] == "ready":
            self.forecast.ready()

    def observe(self, outcome: Receipt | Failure) -> None:
        self.progress.observe(outcome)
        self.forecast.observe(outcome)


def _tell(result: Extraction, seconds: float) -> None:
    """One line, and what rounding cost, where it cost something."""
    fresh, lost = result.fresh.shards, result.tally.underflow
    done = (
        f"{fresh} shards, {result.skipped} were done" if fresh else "nothing to do, all shards are committed"
    )
    stored = [f"{result.tally.nonzeros:,} nonzeros"] if any(s.has_sae for s in result.plan.sites) else []
    if dense := result.tally.bytes[DENSE]:
        stored.append(f"{size(dense)} of x in {result.plan.dense_dtype}")
    say(f"[bold]extract[/] {done}; {', '.join(stored)} ({seconds:.1f} s)")
    if lost:
        dtype = result.plan.activation_dtype
        say(
            f"[yellow]{lost:,} activations[/] rounded to 0 in {dtype} and are not stored; "
            "`activation_dtype: float32` keeps them"
        )


def _tell_quality(result: Extraction, check: CheckSae) -> None:
    """What the SAEs explain, where a worker looked; of several looks the first."""
    looks = {name: explained for name, (_, explained) in result.tally.looks.items()}
    unseen = [site.name for site in result.plan.sites if site.has_sae and site.name not in looks]
    if unseen and check != "off" and result.fresh.shards:
        names = escape(", ".join(unseen))
        say(f"{names}: nobody looked how well it reconstructs (its target is unknown, or rows are few)")
    for name, explained in sorted(looks.items()):
        is_worse = explained.judged < 0
        worse = ", less than the mean of x does: see `latentlake check-sae`" if is_worse else ""
        rest = explained.of_rest
        massive = "" if rest is None else f" ({rest:.3f} without a few rows above ten times the median norm)"
        said = f"explains {explained.of_all:.3f} of the variance on the first rows{massive}{worse}"
        say(f"[{'yellow' if is_worse else 'bold'}]{escape(name)}[/] {said}")


if __name__ == "__main__":
    import sys

    from jobs.cli import main

    main(["extract", *sys.argv[1:]])
