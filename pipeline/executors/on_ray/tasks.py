"""Tasks on a Ray cluster. Ray retries nothing: a task whose worker died is sent again here, and counted."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from itertools import islice
from typing import Any, Self, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.executors.node_probe import ProbeFile, require_shared_storage, storage_probe
from pipeline.executors.on_ray.session import ray_session
from pipeline.tasks import MAX_DEATHS, THREADS
from schemas.errors import InputError
from schemas.layout import StorePath
from schemas.run.file import Extract

Item = TypeVar("Item")
Result = TypeVar("Result")


class RayTasks:
    """Remote tasks of `cpus_per_task` CPUs, whose libraries take as many threads, and `gpus_per_task` GPUs.

    At most `most` (default: what the cluster's CPUs hold, twice) are in flight, so that results that are
    waited for out of turn stay few. Joins the Ray of this process, if there is one. With the `root` of a
    store in a file system, a task on a node that does not see it is a NodeError that says so.
    """

    def __init__(
        self,
        address: str = "local",
        *,
        cpus_per_task: int = 1,
        gpus_per_task: float = 0,
        most: int | None = None,
        root: StorePath | None = None,
    ) -> None:
        self._address, self._cpus, self._gpus = address, cpus_per_task, gpus_per_task
        self._most, self._root = most, root
        self._session = ExitStack()
        self._probe: ProbeFile | None = None

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """As `Tasks.map`; InputError when a task's worker dies MAX_DEATHS times."""
        shared, rest, flight = ray.put(function), iter(items), deque[tuple[Item, Any]]()
        resources: Any = ray.cluster_resources
        most = self._most or max(2, 2 * int(resources().get("CPU", 1)) // self._cpus)
        threads = dict.fromkeys(THREADS, str(self._cpus))  # set before any library is imported there
        options: Any = {"num_cpus": self._cpus, "num_gpus": self._gpus}
        task = ray.remote(**options, max_retries=0, runtime_env={"env_vars": threads})(_call)
        remote = partial(task.remote, self._probe)
        try:
            while True:
                flight.extend((item, remote(shared, item)) for item in islice(rest, most - len(flight)))
                if not flight:
                    return
                item, ticket = flight.popleft()
                for deaths in range(1, MAX_DEATHS + 1):
                    try:
                        result = ray.get(ticket)
                        break
                    except RayTaskError as error:
                        cause = error.cause  # what the function raised
                        raise cause if isinstance(cause, BaseException) else error from None
                    except RayError as error:
                        if deaths == MAX_DEATHS:
                            raise InputError(
                                f"a task's worker died {deaths} times ({type(error).__name__}; out of "
                                "memory?): use fewer --workers"
                            ) from None
                        ticket = remote(shared, item)
                yield result
        finally:
            for _, ticket in flight:
                ray.cancel(ticket, force=True)

    def __enter__(self) -> Self:
        workers = {"workers": self._most or os.cpu_count(), "cpus_per_worker": self._cpus}
        self._session.enter_context(ray_session(Extract.model_validate({"address": self._address} | workers)))
        if self._root is not None:
            with suppress(InputError):  # a store that is only read may lie where nobody writes
                self._probe = self._session.enter_context(storage_probe(self._root))
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()
        self._probe = None


def _call(probe: ProbeFile | None, function: Callable[[Any], Any], item: Any) -> Any:
    require_shared_storage(probe)
    return function(item)
