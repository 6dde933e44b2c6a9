"""Tasks: one function over many items, in this process or in several; results come in the order of the items.

Functions are module-level ones, or a `functools.partial` of one that carries what all items share. Items and
results are small and can be pickled. What is raised by the function is raised where the results are taken.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from schemas.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_DEATHS = 3
"""Times in a row that workers may die while the same result is waited for."""

THREADS = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Environment variables that say how many threads a library takes; they count before it is imported."""


class Tasks(Protocol):
    """Carries calls; a context manager that ends its workers."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`function` of each item, in order; few are in flight, so `items` may be made as they are taken."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class OneProcess:
    """Everything here, one after another."""

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """As `Tasks.map`."""
        return map(function, items)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return


class Processes:
    """`n` processes of one thread each, spawned (a fork deadlocks in Polars); a dead one is replaced.

    Two threads were as quick as two processes at `stats` and `verify` on two cores (medians of five turns
    each); processes are taken because one that runs out of memory does not take the job with it.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._pool: ProcessPoolExecutor | None = None

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """As `Tasks.map`; InputError when workers die MAX_DEATHS times over one item."""
        rest, flight = iter(items), deque[tuple[Item, Future[Result]]]()
        with _published(function) as call:
            deaths = 0
            try:
                while True:
                    # Twice as many as there are workers, so that none waits while a result is handed out.
                    for item in islice(rest, 2 * self._n - len(flight)):
                        flight.append((item, self._submit(call, item)))
                    if not flight:
                        return
                    # The oldest is waited for: results come in the order of the items.
                    try:
                        result = flight[0][1].result()
                    except BrokenProcessPool:
                        deaths += 1
                        self.__exit__()
                        if deaths >= MAX_DEATHS:
                            raise InputError(
                                f"worker processes died {deaths} times on the same piece of work (out of "
                                "memory?): use fewer --workers"
                            ) from None
                        flight = deque((item, self._again(call, item, future)) for item, future in flight)
                        continue
                    deaths = 0
                    flight.popleft()
                    yield result
            finally:
                for _, future in flight:
                    future.cancel()

    def _submit(self, call: Callable[[Item], Result], item: Item) -> Future[Result]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._n, mp_context=context, initializer=_begin_worker)
        try:
            return self._pool.submit(call, item)
        except (BrokenProcessPool, OSError) as error:  # OSError: of a pool that is just found to be broken
            broken: Future[Result] = Future()
            broken.set_exception(BrokenProcessPool(str(error)))  # as reported for those that were in flight
            return broken

    def _again(self, call: Callable[[Item], Result], item: Item, future: Future[Result]) -> Future[Result]:
        """The call once more, unless it had ended before the workers died."""
        died = not future.done() or future.cancelled() or isinstance(future.exception(), BrokenProcessPool)
        return self._submit(call, item) if died else future

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def _begin_worker() -> None:
    """One thread; and the end of the process that submitted the work is this one's end too."""
    os.environ.update(dict.fromkeys(THREADS, "1"))
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


class _Published:
    """A function that lies pickled in a file, so that what it carries goes to each worker once."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, item: Any) -> Any:
        if _KEPT.get("path") != self._path:
            _KEPT.update(path=self._path, function=pickle.loads(Path(self._path).read_bytes()))  # noqa: S301
        return _KEPT["function"](item)


_KEPT: dict[str, Any] = {}
"""The function that this worker last ran."""


@contextlib.contextmanager
def _published(function: Callable[[Item], Result]) -> Iterator[Callable[[Item], Result]]:
    with tempfile.TemporaryDirectory(prefix="latentlake-") as folder:
        path = Path(folder) / "function.pickle"
        path.write_bytes(pickle.dumps(function))
        yield _Published(str(path))
