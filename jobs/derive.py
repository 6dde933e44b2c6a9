"""What `run` makes of a store: tables, figures and the report, in the order in which they need each other.

Each step imports its job when it is its turn: the libraries behind them take seconds.
"""

from __future__ import annotations

from collections.abc import Callable

from rich.markup import escape

from jobs.console import say
from jobs.parallel import choose_tasks
from pipeline.executors.tasks import Tasks
from pipeline.store import FeatureStore
from schemas.run_file import RunFile

Step = Callable[[FeatureStore, str, RunFile, Tasks], object]


def derive(store: FeatureStore, site: str, run_file: RunFile) -> None:
    """All that the run file's section `derive` names, of one site."""
    with choose_tasks(store) as tasks:
        for name, step in STEPS.items():
            if name in run_file.derive.jobs:
                step(store, site, run_file, tasks)


def _stats(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:  # noqa: ARG001
    from jobs.stats import stats

    stats(store, site, tasks)


def _examples(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:  # noqa: ARG001
    from jobs.examples import examples

    examples(store, site, tasks)


def _profile(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:  # noqa: ARG001
    from jobs.profile import profile

    profile(store, site, tasks)


def _rank(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:
    from jobs.rank import rank

    rank(store, site, run_file.rank.by, tasks)


def _coactivation(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:  # noqa: ARG001
    from jobs.coactivation import coactivation

    coactivation(store, site, tasks)


def _cluster(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:
    from jobs.cluster import cluster

    cluster(store, site, run_file.cluster, tasks)


def _logits(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:  # noqa: ARG001
    from jobs.logits import Asked, logits
    from jobs.parallel import choose_model_tasks, device_for

    plan = store.plans[store.site(site).pass_name]
    device = device_for(plan, "auto", None)
    with choose_model_tasks(store, plan, device) as model_tasks:
        logits(store, site, Asked(device), model_tasks)


def _fidelity(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:  # noqa: ARG001
    from jobs.fidelity import Asked, fidelity
    from jobs.parallel import choose_model_tasks, device_for

    plan = store.plans[store.site(site).pass_name]
    device = device_for(plan, "auto", None)
    with choose_model_tasks(store, plan, device) as model_tasks:
        fidelity(store, site, Asked(device), model_tasks)


def _plots(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:  # noqa: ARG001
    from jobs.plots import plots

    figures = plots(store, site)
    say(f"[bold]plots[/] {len(figures)} files in {escape(str(store.layout.figures(site)))}")


def _report(store: FeatureStore, site: str, run_file: RunFile, tasks: Tasks) -> None:  # noqa: ARG001
    from jobs.report.build import report, tasks_for

    with tasks_for(store, None) as page_tasks:
        page = report(store, [site], page_tasks, features=run_file.derive.report)
    say(f"[bold]report[/] {escape(str(page))}")


STEPS: dict[str, Step] = {
    "stats": _stats,
    "examples": _examples,
    "profile": _profile,
    "rank": _rank,
    "coactivation": _coactivation,
    "cluster": _cluster,
    "logits": _logits,
    "fidelity": _fidelity,
    "plots": _plots,
    "report": _report,
}
