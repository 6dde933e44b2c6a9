"""`latentlake plan RUN.yaml`: a probe of about a minute, which predicts what the whole run takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from jobs.terminal.console import console, say, say_cpu, warn
from jobs.terminal.progress import Meter, duration, size
from pipeline.monitor.prediction import Prediction, Span, compared, write_prediction
from pipeline.plans.passes import by_pass, with_gpus
from pipeline.plans.plan import resolve
from pipeline.run import Extraction
from pipeline.store.objects.local import local_scratch
from pipeline.store.objects.paths import store_path
from pipeline.store.records.commits import read_commits
from pipeline.store.records.tokens import read_links
from schemas.layout import Layout
from schemas.run.file import RunFile
from schemas.sentences import several

ASSUMED = (
    "every worker is as fast as this one was here and now, and does not wait for CPUs, disk or network that "
    "this one had to itself",
    "the rest of the corpus resembles its beginning",
)


def plan(
    run_file: RunFile,
    workers: Annotated[
        int | None, typer.Option(help="Number of workers. Default: that of the run file.", min=1)
    ] = None,
    seconds: Annotated[float, typer.Option(help="How many seconds to measure.", min=1)] = 60.0,
) -> list[Prediction]:
    """Probe each pass in a scratch folder, print its prediction, and keep it where the run will find it."""
    from jobs.lake.probe import Probe

    resolved, warnings = resolve(run_file)
    warn(warnings)
    if workers is not None:
        extract = resolved.extract.model_copy(update={"workers": workers})
        resolved = resolved.model_copy(update={"extract": extract})
    layout = Layout(store_path(resolved.store.root))
    parts = by_pass(resolved, layout)
    # A finished pass takes no time; where all are, or no tokens are there yet, each is predicted.
    shards = sum(len(link.shards) for link in read_links(layout))
    unfinished = [p for p in parts if len(read_commits(layout, str(p.store.pass_name))) < shards]
    predictions: list[Prediction] = []
    for part, why_cpu in (with_gpus(part, layout) for part in unfinished or parts):
        if why_cpu is not None:
            say_cpu(why_cpu)
        with local_scratch("latentlake-plan-") as folder, Meter("plan") as meter:
            prediction = Probe(part, folder, seconds).predict(meter.begin)
        _show_prediction(prediction, str(part.store.pass_name))
        write_prediction(layout, str(part.store.pass_name), prediction)
        predictions.append(prediction)
    return predictions


def _show_prediction(prediction: Prediction, pass_name: str) -> None:
    """The whole run in figures, and what they rest on."""
    rows, workers = prediction.rows, prediction.workers
    shards = -(-rows // prediction.shard_rows)
    nonzeros = prediction.nonzeros_per_token.times(rows)
    by_size = sorted(prediction.bytes_by_kind.items(), key=lambda item: -item[1])
    kinds = ", ".join(f"{kind.partition('.')[0]} {size(each * rows)}" for kind, each in by_size)
    stored = _words(prediction.bytes_per_token.times(rows), size)
    table = Table(title=f"pass {pass_name}: {rows:,} tokens, {several(workers, 'worker')}", show_header=False)
    for name, value in {
        "tokens/s per worker": prediction.tokens_per_second.format(",.0f"),
        "nonzeros per token": prediction.nonzeros_per_token.format(",.2f"),
        "nonzeros": _words(nonzeros, "{:,.0f}".format),
        "stored": f"{stored}: {kinds}",
        "data objects": f"{prediction.objects_per_shard * shards:,.0f} in {shards:,} shards",
        "time": _words(prediction.seconds(rows, workers), duration),
        "of which loading": duration(prediction.load_seconds),
    }.items():
        table.add_row(name, value)
    console.print(table)
    say(f"From {escape(prediction.source)}; in brackets, the range over its shards. Assumptions:")
    for line in (*ASSUMED, *prediction.assumed):
        say(f"- {escape(line)}")


def _words(span: Span, words: Callable[[float], str]) -> str:
    if words(span.low) == words(span.high):
        return words(span.value)
    return f"{words(span.value)} ({words(span.low)} to {words(span.high)})"


def show_comparison(prediction: Prediction, result: Extraction, seconds: float) -> None:
    """Prediction against fact, at the end of a run that committed something."""
    table = Table(
        title=f"prediction (from {escape(prediction.source)}) and actual values", title_justify="left"
    )
    for column in ("", "predicted", "fact", "fact / predicted"):
        table.add_column(column, justify="right" if column else "left")
    for name, predicted, fact in compared(prediction, result.fresh, seconds, result.workers):
        ratio = f"{fact / predicted.value:.2f}" if predicted.value else ""
        words = duration if name == "seconds" else "{:,.4g}".format
        table.add_row("time" if name == "seconds" else name, _words(predicted, words), words(fact), ratio)
    console.print(table)
