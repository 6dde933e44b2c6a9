"""What `run` makes of a store: tables, figures and the report, in the order in which they need each other.

Each step imports its job when it is its turn: the libraries that they need take seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature

from rich.markup import escape

from jobs.command.registry import find
from jobs.command.tasks import choose_model_tasks, choose_tasks, device_for
from jobs.terminal.console import say
from pipeline.store import FeatureStore
from pipeline.store.records.tables import require_writable
from pipeline.tasks import Tasks
from schemas.run.file import RunFile

Step = Callable[[FeatureStore, str, RunFile, Tasks], object]


def derive(store: FeatureStore, site: str, run_file: RunFile) -> None:
    """All that the run file's section `derive` names, of one site."""
    require_writable(store.layout, site)
    with choose_tasks(store) as tasks:
        for name, step in STEPS.items():
            if name in run_file.derive.jobs:
                step(store, site, run_file, tasks)


def _job(name: str) -> Step:
    """The command of that name, as the command line runs it without options."""

    def step(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:
        job = find(name).load()
        given = {"tasks": tasks, "run_file": run_file}
        job(store, site, **{key: value for key, value in given.items() if key in signature(job).parameters})

    return step


def _with_model(name: str) -> Step:
    """The same of a command that runs the model, where the run file says that it lies."""

    def step(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:  # noqa: ARG001
        plan = store.plans[store.site(site).pass_name]
        device = device_for(plan, "auto", None)
        with choose_model_tasks(store, plan, device) as model_tasks:
            find(name).load()(store, site, model_tasks, device=device, model=run_file.model.path or None)

    return step


def _plots(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:  # noqa: ARG001
    from jobs.figures.plots import plots

    figures = plots(store, site, run_file.derive.language)
    say(f"[bold]plots[/] {len(figures)} files in {escape(str(store.layout.figures(site)))}")


def _report(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:  # noqa: ARG001
    from jobs.report.build import report, tasks_for

    with tasks_for(store, None) as page_tasks:
        order = [str(each.name) for each in run_file.sites]
        page = report(store, [site], page_tasks, features=run_file.derive.report, order=order)
    say(f"[bold]report[/] {escape(str(page))}")


STEPS: dict[str, Step] = {
    "stats": _job("stats"),
    "examples": _job("examples"),
    "profile": _job("profile"),
    "rank": _job("rank"),
    "coactivation": _job("coactivation"),
    "cluster": _job("cluster"),
    "logits": _with_model("logits"),
    "fidelity": _with_model("fidelity"),
    "importance": _job("importance"),
    "images": _job("images"),
    "attribute": _with_model("attribute"),
    "plots": _plots,
    "report": _report,
}
