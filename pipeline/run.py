"""The main loop: plan, drop what is committed, dispatch, collect receipts, write the manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.executors.dispatch import Dispatcher, Policy
from pipeline.monitor.heartbeat import Heartbeat, OnEvent
from pipeline.monitor.journal import journal
from pipeline.monitor.prediction import Forecast, Prediction
from pipeline.monitor.run_state import RunState
from pipeline.monitor.tally import Tally
from pipeline.plans.plan import Agreed, differences, find_plan, make_plan
from pipeline.store.formats.parquet import read_frame
from pipeline.store.objects.verbs import readable, remove_tree, self_test
from pipeline.store.records.commits import ManifestRow, manifest_row, scan_commits, write_manifest
from pipeline.store.records.dropped import dropped_sites, live_part, live_sites
from pipeline.store.records.plans import put_plan
from pipeline.store.records.site import has_site_weights
from pipeline.store.records.tokens import read_links, require_lake
from schemas.errors import InputError, NodeError
from schemas.layout import Layout
from schemas.records import Plan, Receipt
from schemas.run.file import Extract, RunFile
from schemas.values import Failure, Hello


@dataclass
class Extraction:
    """What a run of `extract` did; its size does not grow with the shards' contents."""

    plan: Plan
    total: int
    """Shards of the store."""
    rows: int
    """Token rows of the store."""
    workers: int
    """As requested."""
    tally: Tally = field(default_factory=Tally)
    """Of all that is committed."""
    fresh: Tally = field(default_factory=Tally)
    """Of what this run committed."""
    failures: dict[str, Failure] = field(default_factory=dict)
    state: RunState = field(default_factory=RunState)
    """What this run's events say so far."""
    prediction: Prediction | None = None
    """What was predicted of the pass, from a probe or from this run's first shards."""

    @property
    def skipped(self) -> int:
        """Shards that were committed before."""
        return self.tally.shards - self.fresh.shards


def extract(
    layout: Layout,
    run: RunFile,
    *,
    accept_environment: bool = False,
    begin: Callable[[Extraction], None] = lambda extraction: None,
    on_event: OnEvent = lambda **event: None,
) -> Extraction:
    """Commit every shard of the store's tokens under the resolved run file; what was committed stays.

    Raises InputError when the recipe differs from the pass's plan, when the storage is unfit, and, after all
    other shards were committed, when some shard had to be quarantined. `begin` is called with what is to do,
    `on_event` with each event, which the extraction's `state` holds by then.
    """
    forecast = Forecast(layout)
    made = make_plan(run, require_lake(layout))
    agreed = find_plan(layout, made, accept_environment=accept_environment)
    plan = agreed.plan
    result = Extraction(plan, 0, 0, run.extract.workers if run.extract.executor == "ray" else 1)
    todo, committed = _pending(layout, result)
    if not committed:
        remove_tree(layout.dropped(plan.pass_name))  # of a pass that was dropped half-way, and begins anew
    begin(result)
    rows = result.rows - result.tally.rows
    forecast.begin(plan.hash, plan.pass_name, rows, len(todo), result.workers)
    if not todo:
        _complete(layout, agreed, committed)
        return result
    # Before any worker starts: where two racing writers both win, a shard could be committed twice.
    self_test(layout.root)
    check = WorkerCheck(layout, agreed, result.tally.devices, accept_environment=accept_environment)
    counts = {"shards": len(todo), "total": result.total, "workers": result.workers}

    def observe(**event: Any) -> None:
        if event["event"] == "ready":
            forecast.ready()
        on_event(**event)

    with journal(layout, plan, observe, result.state, **counts) as log:
        for outcome in _dispatch(layout, run.extract, plan, todo, check, log):
            if isinstance(outcome, Failure):
                result.failures[outcome.shard] = outcome
                continue
            result.tally.add(outcome)
            result.fresh.add(outcome)
            committed.append(manifest_row(outcome))
            log.committed(outcome)
            forecast.observe(outcome)
        # The manifest repeats what receipts say, so it is written once, also of a run with failures.
        failed = {failure.shard: failure.error for failure in result.failures.values()}
        write_manifest(layout, plan.pass_name, committed, failed)
        if result.failures:
            first = min(result.failures.values(), key=lambda failure: failure.shard)
            raise InputError(
                f"{len(result.failures)} of {result.total} shards were quarantined, {result.tally.shards} "
                f"are committed; the first: {first.error} (shard {first.shard}, {first.attempts} attempts); "
                "fix it and run again"
            )
    result.prediction = forecast.prediction
    return result


def _complete(layout: Layout, agreed: Agreed, committed: list[ManifestRow]) -> None:
    """Write what a run that died did not come to, or what was lost since: weights, plan, manifest."""
    plan = agreed.plan
    sites = live_sites(plan, dropped_sites(layout, plan.pass_name))
    if not all(has_site_weights(layout, plan.pass_name, site.name) for site in sites):
        from pipeline.worker import Worker

        # In the order of a run: what loads is proven first, and no weights are kept without their plan.
        worker = Worker(layout.root, plan)
        worker.setup()
        put_plan(layout, *agreed)
        worker.begin()
    put_plan(layout, *agreed)
    if _names(layout, plan.pass_name) != {row[0] for row in committed}:
        write_manifest(layout, plan.pass_name, committed, {})


def _pending(layout: Layout, result: Extraction) -> tuple[list[str], list[ManifestRow]]:
    """Shards that are to do, in order, and what the manifest says of the others, which are counted.

    What is committed must be of this plan and of these tokens.
    """
    plan, plan_hash = result.plan, result.plan.hash
    dropped = dropped_sites(layout, plan.pass_name)
    records = {record.name: record for link in read_links(layout) for record in link.shards}
    result.total, result.rows = len(records), sum(record.rows for record in records.values())
    # Of the shards of the corpus those that have a receipt are taken out: what is left is to do.
    committed = []
    for receipt in scan_commits(layout, plan.pass_name):
        record = records.pop(receipt.shard, None)
        if receipt.plan_hash != plan_hash or record is None or receipt.tokens_sha256 != record.sha256:
            of = "plan" if receipt.plan_hash != plan_hash else "token shard"
            raise InputError(
                f"{layout.commit(plan.pass_name, receipt.shard)} was made from a different {of} than the "
                "store has now: restore that one, or give the pass another name"
            )
        receipt = live_part(receipt, dropped)
        result.tally.add(receipt)
        committed.append(manifest_row(receipt))
    return list(records), committed


def _names(layout: Layout, pass_name: str) -> set[str]:
    """Shards that the manifest calls committed; none where it is missing or cannot be read."""
    path = layout.manifest(pass_name)
    try:
        with readable(path):
            manifest = read_frame(path, ["shard", "state"])
    except (OSError, InputError):
        return set()
    return set(manifest.filter(manifest["state"] == "committed")["shard"])


class WorkerCheck:
    """Refuses a worker with other libraries than the plan, or another device than the data so far.

    The first one that is welcome has shown that model, hooks and SAEs can be used: then the plan is put.
    """

    def __init__(
        self, layout: Layout, agreed: Agreed, devices: set[str], *, accept_environment: bool
    ) -> None:
        self._layout, self._agreed, self._devices = layout, agreed, set(devices)
        self._accept, self._has_put = accept_environment, False

    def __call__(self, hello: Hello) -> None:
        """Raise NodeError when `hello` does not fit, and InputError when another run has put another plan."""
        changes = differences(self._agreed.plan.environment, hello.environment)
        if self._devices and hello.device_model not in self._devices:
            changes.append(f"device was {', '.join(sorted(self._devices))}, now {hello.device_model}")
        if changes and not self._accept:
            raise NodeError(
                f"node {hello.node} differs from the pass's data ({'; '.join(changes)}), so low bits may "
                "differ: use identical nodes, or --accept-environment"
            )
        self._devices.add(hello.device_model)
        if not self._has_put:
            put_plan(self._layout, *self._agreed)
            self._has_put = True


def _dispatch(
    layout: Layout, settings: Extract, plan: Plan, todo: list[str], check: WorkerCheck, on_event: OnEvent
) -> Iterator[Receipt | Failure]:
    """Run the shards on the executor that the run file names (imported when chosen: torch is heavy)."""
    if settings.executor == "in_process":
        from pipeline.executors.in_process import run_in_process
        from pipeline.worker import Worker

        worker = Worker(
            layout.root,
            plan,
            check_sae=settings.check_sae,
            oom_batch_contexts=settings.oom_batch_contexts,
            on_rows=Heartbeat(on_event).emit_one,
        )
        yield from run_in_process(
            todo, worker, max_attempts=settings.max_attempts, check=check, on_event=on_event
        )
        return
    from pipeline.executors.on_ray.actors import ray_backend
    from pipeline.executors.on_ray.session import ray_session

    policy = Policy(
        workers=settings.workers,
        max_attempts=settings.max_attempts,
        shard_timeout_s=settings.shard_timeout_s,
        no_worker_warning_s=settings.no_worker_warning_s,
        no_worker_timeout_s=settings.no_worker_timeout_s,
    )
    with ray_session(settings), ray_backend(layout.root, plan, settings) as backend:
        yield from Dispatcher(todo, backend, policy, check=check, on_event=on_event).run()
