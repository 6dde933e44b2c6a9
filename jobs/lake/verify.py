"""`latentlake verify STORE`: every checksum, and every statistic recomputed from the raw activations."""

from __future__ import annotations

import time

from rich.markup import escape

from jobs.terminal.console import console, say
from pipeline.store import FeatureStore
from pipeline.tasks import Tasks
from schemas.errors import InputError
from schemas.sentences import several


def verify(store: FeatureStore, tasks: Tasks | None = None) -> None:
    """Say what was checked; raise InputError, after listing every problem, when something is wrong."""
    began = time.monotonic()
    with console.status("verify"):
        report = store.verify(tasks)
    for problem in report.problems:
        say(f"[red]wrong[/]: {escape(problem)}")
    say(
        f"[bold]verify[/] {report.objects:,} objects, {report.bytes / 1e6:,.1f} MB, "
        f"{report.nonzeros:,} activations, {report.statistics:,} statistics recomputed "
        f"({time.monotonic() - began:.1f} s)"
    )
    for line in report.stale:
        say(f"[yellow]behind[/]: {escape(line)}")
    if report.problems:
        raise InputError(
            f"{several(len(report.problems), 'problem')} in {store.layout.root}: fix what is named above, "
            "or restore it from a copy of the store"
        )
    console.print("everything agrees", style="green")
