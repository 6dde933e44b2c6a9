"""Workers as Ray actors, each pinned to its share of GPUs and CPUs.

Ray retries nothing here (`max_restarts=0, max_task_retries=0`): every attempt is the driver's and is counted.
Nothing large enters the object store: a call takes a shard's name and returns a receipt.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from pipeline.executors.dispatch import CallFailedError, WorkerLostError
from pipeline.executors.node_probe import ProbeFile, require_shared_storage, storage_probe
from pipeline.executors.on_ray.metrics import DriverMetrics, WorkerMetrics
from pipeline.executors.on_ray.session import one_line
from pipeline.models.device import is_broken
from pipeline.monitor import logs
from pipeline.store.objects.paths import is_memory, store_path
from pipeline.worker import Worker
from schemas.errors import InputError, NodeError, PassingError, ShardError
from schemas.layout import StorePath
from schemas.records import Plan, Receipt
from schemas.run.file import Extract
from schemas.values import Hello

BROKEN_EXIT_S = 2.0
"""A process that cannot use its GPU any more reports to the driver, and ends by itself after this time."""


@dataclass(frozen=True)
class Job:
    """What every worker of a run receives."""

    root: str
    plan: Plan
    extract: Extract
    probe: ProbeFile | None


class ExtractionActor:
    """One worker in a process of its own, which touches nothing before its node is known to see the store."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker: Worker | None = None
        self._node = ray.get_runtime_context().get_node_id()
        logs.start(node=self._node)
        self._metrics = WorkerMetrics(job.plan.pass_name, self._node)

    def hello(self) -> Hello:
        """Load everything, and say what this node sees; the node goes by Ray's id, as draining ones do."""
        require_shared_storage(self._job.probe)
        job, gpus = self._job, tuple(str(gpu) for gpu in ray.get_gpu_ids())
        with _ends_if_broken():
            worker = Worker(
                store_path(job.root),
                job.plan,
                gpus,
                job.extract.check_sae,
                oom_batch_contexts=job.extract.oom_batch_contexts,
            )
            hello = replace(worker.setup(), node=self._node)
        self._worker = worker
        logs.log_event("ready", gpus=gpus, device=hello.device_model)
        return hello

    def process(self, shard: str) -> Receipt:
        """Write and commit one shard."""
        assert self._worker is not None, "hello comes first"
        began = time.monotonic()
        with logs.about(shard=shard), _logged_failures(), _ends_if_broken():
            receipt: Receipt = self._worker.process(shard)
            seconds = time.monotonic() - began
            self._metrics.committed(receipt, seconds)
            logs.log_event("committed", rows=receipt.rows, seconds=round(seconds, 3))
        return receipt

    @ray.method(concurrency_group="watch")  # a thread of its own, that answers while another one works
    def rows_done(self, shard: str) -> int:
        """Rows of the shard that are done, while it is in flight."""
        return self._worker.rows_done(shard) if self._worker else 0


class RayBackend:
    """Starts actors and carries calls to them."""

    def __init__(self, root: StorePath, plan: Plan, extract: Extract, probe: ProbeFile | None = None) -> None:
        if is_memory(root):
            raise InputError(
                f"store.root {root} is in the memory of this process, which Ray's workers cannot see: set "
                "extract.executor: in_process, or another store.root"
            )
        # Where all nodes are here nothing can scale, so a worker must fit on the GPUs there are.
        there = _resources().get("GPU", 0)
        gpus = extract.gpus_per_worker or 0
        if extract.ray_address == "local" and gpus > there:
            raise InputError(
                f"extract.gpus_per_worker is {gpus:g}, but this machine has {there:g} GPUs"
                ": set 0, or name a cluster in extract.address"
            )
        self._progress: dict[Any, tuple[str, Any, int]] = {}
        self._job = Job(str(root.absolute()), plan, extract, probe)
        self._metrics = DriverMetrics(plan.pass_name)
        # num_cpus is always given: an actor with GPUs alone takes one CPU more, and may wait for it forever
        remote: Any = ray.remote  # its types know no concurrency groups
        self._actor = remote(
            num_cpus=extract.cpus_per_worker,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"watch": 1},
        )(ExtractionActor)

    def spawn(self) -> tuple[Any, Hashable]:
        """Start an actor; surplus ones stay pending and are the autoscaler's demand."""
        actor = self._actor.remote(self._job)
        return actor, actor.hello.remote()

    def process(self, worker: Any, shard: str) -> Hashable:
        """Ask an actor for a shard."""
        ticket: Hashable = worker.process.remote(shard)
        return ticket

    def rows_done(self, worker: Any, shard: str) -> int:
        """The rows that the actor last reported of the shard; the next call is sent once it has answered."""
        last_shard, ticket, rows = self._progress.get(worker, (shard, None, 0))
        if last_shard != shard:
            ticket, rows = None, 0
        if ticket is not None and ray.wait([ticket], timeout=0)[0]:
            try:
                rows, ticket = ray.get(ticket), None
            except RayError:  # it died, which its shard's ticket reports
                return 0
        self._progress[worker] = (shard, worker.rows_done.remote(shard) if ticket is None else ticket, rows)
        return rows

    def wait(self, tickets: Sequence[Hashable], timeout_s: float) -> list[Hashable]:
        """All tickets that are ready, waiting for the first."""
        ready, _ = ray.wait(list(tickets), num_returns=len(tickets), timeout=0)
        return ready or ray.wait(list(tickets), num_returns=1, timeout=timeout_s)[0]

    def result(self, ticket: Any) -> Any:
        """The call's value, or what became of it."""
        try:
            return ray.get(ticket)
        except RayTaskError as error:
            raise self._raised(error.cause) from None
        except RayError as error:
            preempted = isinstance(error, RayActorError) and bool(error.preempted)
            self._metrics.failed("preempted" if preempted else "lost")
            raise WorkerLostError(one_line(error), preempted=preempted) from None

    def _raised(self, cause: BaseException) -> Exception:
        """What the driver makes of an error inside a worker."""
        self._metrics.failed("lost" if isinstance(cause, WorkerLostError) else "error")
        if isinstance(cause, ShardError):
            return CallFailedError(str(cause), permanent=True)
        if isinstance(cause, WorkerLostError | NodeError):
            return cause
        if isinstance(cause, InputError) and not isinstance(cause, PassingError):
            return InputError(str(cause))
        return CallFailedError(f"{type(cause).__name__}: {cause}")

    def kill(self, worker: Any) -> None:
        """End an actor, also a zombie on an unreachable node."""
        self._progress.pop(worker, None)
        ray.kill(worker, no_restart=True)

    def draining_nodes(self) -> set[str]:
        """Nodes that Ray is draining (private API, which Ray Data and Ray Train use too: so best effort)."""
        try:
            from ray._private.state import state

            return set(state.get_draining_nodes())
        except Exception:  # noqa: BLE001
            return set()

    def resources(self) -> str:
        """What the cluster has, and what was requested of it."""
        extract = self._job.extract
        there, free = _resources(), _resources(free=True)
        free_of_all = ", ".join(
            f"{free.get(k, 0):g} of {there.get(k, 0):g} {k}s free" for k in ("GPU", "CPU")
        )
        list_nodes: Any = ray.nodes
        alive = sum(bool(node["Alive"]) for node in list_nodes())
        return (
            f"the cluster has {alive} nodes with {free_of_all}, each of {extract.workers} workers requests "
            f"{extract.gpus_per_worker or 0:g} GPUs and {extract.cpus_per_worker} CPUs"
        )


@contextmanager
def ray_backend(root: StorePath, plan: Plan, extract: Extract) -> Iterator[RayBackend]:
    """A backend whose workers prove that they see the store at `root`."""
    with storage_probe(root) as probe:
        yield RayBackend(root, plan, extract, probe)


@contextmanager
def _ends_if_broken() -> Iterator[None]:
    """A process whose GPU is in an error state is lost: it logs why, and ends."""
    try:
        yield
    except Exception as error:
        if not is_broken(error):
            raise
        logs.log_event("gpu_broken", logging.CRITICAL, error=error)
        ending = threading.Timer(BROKEN_EXIT_S, os._exit, (70,))
        ending.daemon = True
        ending.start()
        raise WorkerLostError(f"its GPU is in an error state ({one_line(error)})") from None


@contextmanager
def _logged_failures() -> Iterator[None]:
    """An error inside is written to this process's log, with its traceback, before the driver hears of it."""
    try:
        yield
    except Exception as error:
        logs.log_event("failed", logging.ERROR, error=error)
        raise


def _resources(*, free: bool = False) -> dict[str, float]:
    """What the cluster has, in all or now."""
    read: Any = ray.available_resources if free else ray.cluster_resources
    amounts: dict[str, float] = read()
    return amounts
