"""What `run` makes of a store: tables, figures and the report, in the order in which they need each other.

Each step imports its job when it is its turn: the libraries that they need take seconds.
"""

from __future__ import annotations

from inspect import signature

from rich.markup import escape

from jobs.command.registry import find
from jobs.command.tasks import choose_tasks, model_tasks
from jobs.terminal.console import say
from pipeline.store import FeatureStore
from pipeline.store.records.tables import require_writable
from schemas.names import DERIVED_JOBS
from schemas.run.file import RunFile


def derive(store: FeatureStore, site: str, run_file: RunFile) -> None:
    """All that the run file's section `derive` names, of one site."""
    require_writable(store.layout, site)
    with choose_tasks(store) as tasks:
        for name in DERIVED_JOBS:
            if name not in run_file.derive.jobs:
                continue
            if name in PAGES:
                PAGES[name](store, site, run_file)
                continue
            # As the command line calls it without options, but that the model is where the run file says.
            job = find(name).load()
            parameters = signature(job).parameters
            if "device" in parameters:
                with model_tasks(store, site) as (on_model, device):
                    job(store, site, on_model, device=device, model=run_file.model.path or None)
            else:
                given = {"tasks": tasks, "run_file": run_file}
                job(store, site, **{key: value for key, value in given.items() if key in parameters})


def _plots(store: FeatureStore, site: str, run_file: RunFile) -> None:
    from jobs.figures.plots import plots

    figures = plots(store, site, run_file.derive.language)
    say(f"[bold]plots[/] {len(figures)} files in {escape(str(store.layout.figures(site)))}")


def _report(store: FeatureStore, site: str, run_file: RunFile) -> None:
    from jobs.report.build import report, tasks_for

    with tasks_for(store, None) as page_tasks:
        order = [str(each.name) for each in run_file.sites]
        page = report(store, [site], page_tasks, features=run_file.derive.report, order=order)
    say(f"[bold]report[/] {escape(str(page))}")


PAGES = {"plots": _plots, "report": _report}
"""Jobs that draw what the others made."""
