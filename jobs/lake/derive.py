"""What `run` makes of a store: tables, figures and the report, in the order in which they need each other.

Each step imports its job when it is its turn: the libraries that they need take seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from rich.markup import escape

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


def _plain(name: str) -> Step:
    """The job `jobs.tables.<name>`, which needs the store alone."""

    def step(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:  # noqa: ARG001
        getattr(import_module(f"jobs.tables.{name}"), name)(store, site, tasks)

    return step


def _with_model(name: str) -> Step:
    """The job `jobs.evaluation.<name>`, which runs the run file's model, with its defaults."""

    def step(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:  # noqa: ARG001
        job = import_module(f"jobs.evaluation.{name}")
        plan = store.plans[store.site(site).pass_name]
        device = device_for(plan, "auto", None)
        with choose_model_tasks(store, plan, device) as model_tasks:
            asked = job.Asked(device, model=run_file.model.path or None)
            getattr(job, name)(store, site, asked, model_tasks)

    return step


def _importance(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:  # noqa: ARG001
    from jobs.tables.importance import importance

    importance(store, site, tasks=tasks)


def _images(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:  # noqa: ARG001
    from jobs.tables.feature_images import images

    images(store, site)


def _rank(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:
    from jobs.tables.rank import rank

    rank(store, site, run_file.rank.by, tasks, support=run_file.rank.support)


def _cluster(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:
    from jobs.tables.cluster import cluster

    cluster(store, site, run_file.cluster, tasks)


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
    "stats": _plain("stats"),
    "examples": _plain("examples"),
    "profile": _plain("profile"),
    "rank": _rank,
    "coactivation": _plain("coactivation"),
    "cluster": _cluster,
    "logits": _with_model("logits"),
    "fidelity": _with_model("fidelity"),
    "importance": _importance,
    "images": _images,
    "attribute": _with_model("attribute"),
    "plots": _plots,
    "report": _report,
}
