"""Workers as Ray actors, each pinned to its share of GPUs and CPUs. The only module that imports ray.

Ray retries nothing here (`max_restarts=0, max_task_retries=0`): every attempt is the driver's and is counted.
Nothing large enters the object store: a call takes a shard's name and returns a receipt.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from pipeline.executors.dispatch import CallFailedError, WorkerLostError
from pipeline.worker import Worker
from schemas.errors import InputError, ShardError
from schemas.records import Plan, Receipt
from schemas.run_file import CheckSae, Extract
from schemas.values import Hello

OBJECT_STORE_BYTES = 80 * 1024 * 1024


class ExtractionActor:
    """One worker in a process of its own."""

    def __init__(self, root: str, plan: Plan, check_sae: CheckSae) -> None:
        gpus = tuple(str(gpu) for gpu in ray.get_gpu_ids())
        self._worker = Worker(Path(root), plan, gpus, check_sae)

    def hello(self) -> Hello:
        """Load everything, and say what this node sees; the node goes by Ray's id, as draining ones do."""
        return replace(self._worker.setup(), node=ray.get_runtime_context().get_node_id())

    def process(self, shard: str) -> Receipt:
        """Write and commit one shard."""
        return self._worker.process(shard)

    @ray.method(concurrency_group="watch")  # a thread of its own, that answers while another one works
    def rows_done(self, shard: str) -> int:
        """Rows of the shard that are done, while it is in flight."""
        return self._worker.rows_done(shard)


class RayBackend:
    """Starts actors and carries calls to them."""

    def __init__(self, root: Path, plan: Plan, extract: Extract) -> None:
        _check_gpus(extract)
        self._asked: dict[Any, tuple[str, Any, int]] = {}
        self._arguments = (str(root.absolute()), plan, extract.check_sae)
        # num_cpus is always given: an actor with GPUs alone takes one CPU more, and may wait for it for ever
        remote: Any = ray.remote  # its types know no concurrency groups
        self._actor = remote(
            num_cpus=extract.cpus_per_worker,
            num_gpus=extract.gpus_per_worker,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"watch": 1},
        )(ExtractionActor)

    def spawn(self) -> tuple[Any, Hashable]:
        """Start an actor; surplus ones stay pending and are the autoscaler's demand."""
        actor = self._actor.remote(*self._arguments)
        return actor, actor.hello.remote()

    def process(self, worker: Any, shard: str) -> Hashable:
        """Ask an actor for a shard."""
        ticket: Hashable = worker.process.remote(shard)
        return ticket

    def rows_done(self, worker: Any, shard: str) -> int:
        """What the actor last answered of the shard; it is asked again once it has."""
        asked, ticket, rows = self._asked.get(worker, (shard, None, 0))
        if asked != shard:
            ticket, rows = None, 0
        if ticket is not None and ray.wait([ticket], timeout=0)[0]:
            try:
                rows, ticket = ray.get(ticket), None
            except RayError:  # it died, which its shard's ticket tells of
                return 0
        self._asked[worker] = (shard, worker.rows_done.remote(shard) if ticket is None else ticket, rows)
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
            cause = error.cause
            if isinstance(cause, ShardError):
                raise CallFailedError(str(cause), permanent=True) from None
            if isinstance(cause, InputError):
                raise InputError(str(cause)) from None
            raise CallFailedError(f"{type(cause).__name__}: {cause}") from error
        except RayError as error:
            preempted = isinstance(error, RayActorError) and bool(error.preempted)
            raise WorkerLostError(_first_line(error), preempted=preempted) from None

    def kill(self, worker: Any) -> None:
        """End an actor, also a zombie behind an unreachable node."""
        self._asked.pop(worker, None)
        ray.kill(worker, no_restart=True)

    def draining_nodes(self) -> set[str]:
        """Nodes that Ray is draining (private API, which Ray Data and Ray Train use too: so best effort)."""
        try:
            from ray._private.state import state

            return set(state.get_draining_nodes())
        except Exception:  # noqa: BLE001
            return set()


@contextmanager
def ray_session(extract: Extract) -> Iterator[None]:
    """The Ray of this process; else the cluster of the run file or $RAY_ADDRESS; else a private local one."""
    address = extract.address or os.environ.get("RAY_ADDRESS") or "local"
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {
            "num_cpus": extract.workers * extract.cpus_per_worker,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    try:
        ray.init(**options)
    except ConnectionError as error:
        raise InputError(
            f"no Ray cluster answers at {address!r} ({_first_line(error)}); check the address, and that "
            "RAY_AUTH_MODE and the token in ~/.ray/auth_token are those of the cluster"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_gpus(extract: Extract) -> None:
    """Where all nodes are here (nothing can scale), a worker must fit on the GPUs there are."""
    resources: Any = ray.cluster_resources
    there = resources().get("GPU", 0)
    local = not (extract.address or os.environ.get("RAY_ADDRESS"))
    if local and extract.gpus_per_worker > there:
        raise InputError(
            f"extract.gpus_per_worker is {extract.gpus_per_worker:g}, this machine has {there:g} GPUs: "
            "set 0, or name a cluster in extract.address"
        )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
