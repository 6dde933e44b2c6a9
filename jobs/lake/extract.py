"""`latentlake extract RUN.yaml`: run model and SAEs over the token shards (the job that needs the model)."""

from __future__ import annotations

import time

from rich.markup import escape

from jobs.command.options import AcceptEnvironment, LogJson, logged
from jobs.lake.extract_progress import ExtractionProgress
from jobs.lake.plan import show_comparison
from jobs.terminal.console import say, warn
from jobs.terminal.progress import size
from pipeline.plans.passes import by_pass, with_gpus
from pipeline.plans.plan import resolve
from pipeline.run import Extraction
from pipeline.run import extract as run_extraction
from pipeline.store.objects.paths import store_path
from pipeline.store.records.tokens import require_lake
from pipeline.store.upkeep.drop import leftovers
from pipeline.tokens.lake_rule import check_rule
from pipeline.tokens.tokenizer import load_tokenizer
from schemas.layout import DENSE, Layout
from schemas.names import CheckSae
from schemas.run.file import RunFile
from schemas.sentences import several


def extract(
    run_file: RunFile, *, accept_environment: AcceptEnvironment = False, log_json: LogJson = None
) -> list[Extraction]:
    """Commit every shard that is not committed yet, of each pass that the run file is about."""
    with logged(log_json):
        resolved, warnings = resolve(run_file)
        warn(warnings)
        return extract_resolved(resolved, accept_environment=accept_environment)


def extract_resolved(run: RunFile, *, accept_environment: bool = False) -> list[Extraction]:
    """The same for a run file that has every default filled in."""
    layout, began = Layout(store_path(run.store.root)), time.monotonic()
    lake = require_lake(layout)
    assert run.tokens.tokenizer is not None
    check_rule(layout.root, lake, run, load_tokenizer(run.tokens.tokenizer, lake.tokenizer_digest))
    # A dropped site may come again under its name: what its drop left must not lie among its new files.
    for site, piece in leftovers(layout, {str(site.name) for site in run.sites}.__contains__):
        say(f"removed {escape(str(piece.path))}, remains of dropped site {site}")
        piece.remove()
    results: list[Extraction] = []
    for part, why_cpu in (with_gpus(part, layout) for part in by_pass(run, layout)):
        progress, pass_began = ExtractionProgress(why_cpu), time.monotonic()
        with progress.meter:
            result = run_extraction(
                layout,
                part,
                accept_environment=accept_environment,
                begin=progress.begin,
                on_event=progress.on_event,
            )
        if result.prediction is not None and result.fresh.shards:
            show_comparison(result.prediction, result, time.monotonic() - pass_began)
        results.append(result)
    _report(results, time.monotonic() - began)
    _report_quality(results, [site.name for site in run.sites], run.extract.check_sae)
    return results


def _report(results: list[Extraction], seconds: float) -> None:
    """One line over all passes, which are named where they are several; then what rounding cost."""
    fresh, skipped = (sum(n) for n in zip(*((r.fresh.shards, r.skipped) for r in results), strict=True))
    done = (
        f"{several(fresh, 'shard')}, {skipped:,} were already done"
        if fresh
        else "nothing to do, all shards are committed"
    )
    if len(results) > 1:
        done += f", in passes {', '.join(result.plan.pass_name for result in results)}"
    stored = []
    if any(site.has_sae for result in results for site in result.plan.sites):
        stored.append(f"{sum(result.tally.nonzeros for result in results):,} nonzeros")
    if dense := sum(result.tally.bytes[DENSE] for result in results):
        stored.append(f"{size(dense)} of x in {results[0].plan.dense_dtype}")
    say(f"[bold]extract[/] {done}; {', '.join(stored)} ({seconds:.1f} s)")
    for result in results:
        if lost := result.tally.underflow:
            say(
                f"[yellow]{lost:,} activations[/] were rounded to 0 in {result.plan.activation_dtype} and "
                "are not stored; `activation_dtype: float32` keeps them"
            )


def _report_quality(results: list[Extraction], order: list[str], check: CheckSae) -> None:
    """What the SAEs explain, where a worker checked; of several checks the first."""
    quality = {name: explained for r in results for name, (_, explained) in r.tally.explained.items()}
    with_sae = {site.name for r in results if r.fresh.shards for site in r.plan.sites if site.has_sae}
    unseen = [name for name in order if name in with_sae and name not in quality]
    if unseen and check != "off":
        names = escape(", ".join(unseen))
        say(f"{names}: its reconstruction was not checked (its target is unknown, or there are too few rows)")
    for name in (name for name in order if name in quality):
        explained = quality[name]
        is_worse = explained.judged < 0
        worse = ", less than the mean of x: see `latentlake check-sae`" if is_worse else ""
        rest = explained.of_rest
        massive = "" if rest is None else f" ({rest:.3f} without a few rows above ten times the median norm)"
        sentence = f"explains {explained.of_all:.3f} of the variance on the first rows{massive}{worse}"
        say(f"[{'yellow' if is_worse else 'bold'}]{escape(name)}[/] {sentence}")
