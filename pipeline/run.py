"""THE LOOP: plan, drop what is committed, dispatch, collect receipts, write the manifest."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pipeline.executors.dispatch import Dispatcher, OnEvent, Policy
from pipeline.executors.ledger import Failure
from pipeline.plan import agree_on_plan, differences, make_plan
from pipeline.store.commits import read_commits, write_manifest
from pipeline.store.objects import self_test
from pipeline.store.tokens import read_links
from schemas.errors import InputError, NodeError
from schemas.layout import Layout
from schemas.records import Lake, Plan, Receipt, ShardRecord
from schemas.run_file import RunFile
from schemas.values import Hello


@dataclass
class Extraction:
    """What a run of `extract` did."""

    plan: Plan
    total: int
    skipped: int
    receipts: dict[str, Receipt] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)


Observer = Callable[[Receipt | Failure], None]


def extract(
    layout: Layout,
    run: RunFile,
    *,
    accept_environment: bool = False,
    begin: Callable[[Extraction], None] = lambda extraction: None,
    observe: Observer = lambda outcome: None,
    on_event: OnEvent = lambda **event: None,
) -> Extraction:
    """Commit every shard of the store's tokens under the resolved run file; what was committed stays.

    Raises InputError when the recipe differs from the pass's plan, when the storage is unfit, and, after all
    other shards were committed, when some shard had to be given up.
    """
    lake: Lake = Lake.from_json(layout.lake.read_bytes(), str(layout.lake))
    plan = agree_on_plan(layout, make_plan(run, lake), accept_environment=accept_environment)
    records = [record for link in read_links(layout) for record in link.shards]
    done = read_commits(layout, plan.pass_name)
    _check_receipts(layout, plan, records, done)
    todo = [record.name for record in records if record.name not in done]
    result = Extraction(plan, len(records), len(records) - len(todo), receipts=done)
    begin(result)
    if not todo and not all(layout.site(plan.pass_name, site.name).exists() for site in plan.sites):
        from pipeline.worker import Worker

        Worker(layout.root, plan).setup()  # writes the weights that are missing
    if todo:
        self_test(layout.root)
        with _event_log(layout, plan, on_event) as log:
            check = WorkerCheck(plan, done, accept_environment=accept_environment)
            for outcome in _dispatch(layout, run, plan, todo, check, log):
                _file(result, outcome)
                observe(outcome)
        failed = {failure.shard: failure.error for failure in result.failures.values()}
        write_manifest(layout, plan.pass_name, result.receipts, failed)
    if result.failures:
        raise InputError(_told(result))
    return result


def _check_receipts(layout: Layout, plan: Plan, records: list[ShardRecord], done: dict[str, Receipt]) -> None:
    """What is committed must be of this plan and of these tokens."""
    tokens = {record.name: record.sha256 for record in records}
    for shard, receipt in done.items():
        if receipt.plan_hash != plan.hash or receipt.tokens_sha256 != tokens.get(shard):
            of = "plan" if receipt.plan_hash != plan.hash else "token shard"
            raise InputError(
                f"{layout.commit(plan.pass_name, shard)} was made from another {of} than the store has now: "
                "restore that, or give the pass another name"
            )


def _file(result: Extraction, outcome: Receipt | Failure) -> None:
    if isinstance(outcome, Failure):
        result.failures[outcome.shard] = outcome
    else:
        result.receipts[outcome.shard] = outcome


def _told(result: Extraction) -> str:
    """The sentence about shards that were given up."""
    first = min(result.failures.values(), key=lambda failure: failure.shard)
    return (
        f"{len(result.failures)} of {result.total} shards were given up, {len(result.receipts)} are "
        f"committed; the first: {first.error} (shard {first.shard}, {first.attempts} attempts); mend it and "
        "run again"
    )


class WorkerCheck:
    """Refuses a worker with other libraries than the plan, or another device than the data so far."""

    def __init__(self, plan: Plan, done: dict[str, Receipt], *, accept_environment: bool) -> None:
        self._environment = plan.environment
        self._devices = {receipt.environment["device_model"] for receipt in done.values()}
        self._accept = accept_environment

    def __call__(self, hello: Hello) -> None:
        """Raise NodeError when `hello` does not fit."""
        found = differences(self._environment, hello.environment)
        if self._devices and hello.device_model not in self._devices:
            found.append(f"device was {', '.join(sorted(self._devices))}, now {hello.device_model}")
        if found and not self._accept:
            raise NodeError(
                f"node {hello.node} differs from the pass's data ({'; '.join(found)}), so low bits may "
                "differ: use nodes that are alike, or say --accept-environment"
            )
        self._devices.add(hello.device_model)


def _dispatch(
    layout: Layout, run: RunFile, plan: Plan, todo: list[str], check: WorkerCheck, on_event: OnEvent
) -> Iterator[Receipt | Failure]:
    """Run the shards on the executor that the run file names (imported when chosen: torch is heavy)."""
    if run.extract.executor == "in_process":
        from pipeline.executors.in_process import run_in_process
        from pipeline.worker import Worker

        worker = Worker(
            layout.root,
            plan,
            check_sae=run.extract.check_sae,
            oom_batch_contexts=run.extract.oom_batch_contexts,
        )
        yield from run_in_process(
            todo, worker, max_attempts=run.extract.max_attempts, check=check, on_event=on_event
        )
        return
    from pipeline.executors.ray_backend import ray_backend, ray_session

    policy = Policy(
        workers=run.extract.workers,
        max_attempts=run.extract.max_attempts,
        shard_timeout_s=run.extract.shard_timeout_s,
        no_worker_warning_s=run.extract.no_worker_warning_s,
        no_worker_timeout_s=run.extract.no_worker_timeout_s,
    )
    with ray_session(run.extract), ray_backend(layout.root, plan, run.extract) as backend:
        yield from Dispatcher(todo, backend, policy, check=check, on_event=on_event).run()


@contextmanager
def _event_log(layout: Layout, plan: Plan, on_event: OnEvent) -> Iterator[OnEvent]:
    """Append each event to the pass's events.jsonl, and pass it on."""
    path = layout.events(plan.pass_name)
    with path.open("a", encoding="utf-8") as file:

        def log(**event: Any) -> None:
            file.write(json.dumps({"time": round(time.time(), 3), **event}, default=str) + "\n")
            file.flush()
            on_event(**event)

        yield log
