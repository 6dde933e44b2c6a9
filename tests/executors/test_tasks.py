"""Tasks give what a loop gives, in its order; errors and dead workers are reported, not lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.tasks import MAX_DEATHS, OneProcess, Processes, Tasks
from schemas.errors import InputError, ShardError


def square(n: int) -> int:
    time.sleep(0.05 * (n == 0))  # the first is the slowest, and still comes first
    return n * n


def scaled(by: np.ndarray, n: int) -> float:
    return float(by[n])


def refuse(n: int) -> int:
    if n == 3:
        raise ShardError("shard 3: no")
    return n


def die_once(folder: Path, n: int) -> int:
    """End the process, the first time that 2 is asked for."""
    if n == 2 and not (folder / "died").exists():
        (folder / "died").touch()
        os._exit(9)
    return n


def die(n: int) -> int:
    os._exit(9)


class TaskConformance:
    """Set `tasks`."""

    tasks: Tasks

    def test_results_come_in_the_order_of_the_items(self) -> None:
        assert list(self.tasks.map(square, range(9))) == [n * n for n in range(9)]
        assert list(self.tasks.map(square, [])) == []

    def test_a_function_may_carry_what_all_items_share(self) -> None:
        shared = np.arange(300_000.0)
        assert list(self.tasks.map(partial(scaled, shared), [7, 299_999])) == [7.0, 299_999.0]

    def test_what_the_user_can_mend_is_raised_as_it_was(self) -> None:
        result = []
        with pytest.raises(ShardError, match="shard 3: no"):
            result.extend(self.tasks.map(refuse, range(6)))

    def test_few_items_are_taken_ahead(self) -> None:
        taken: list[int] = []
        results = self.tasks.map(square, (taken.append(n) or n for n in range(100)))
        assert next(results) == 0
        assert len(taken) <= 8


class TestOneProcess(TaskConformance):
    tasks = OneProcess()


@pytest.fixture(scope="class")
def two_processes(request: pytest.FixtureRequest):
    with Processes(2) as tasks:
        request.cls.tasks = tasks
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("two_processes")
class TestProcesses(TaskConformance):
    def test_a_worker_that_dies_is_replaced_and_its_item_done_again(self, tmp_path: Path) -> None:
        assert list(self.tasks.map(partial(die_once, tmp_path), range(5))) == list(range(5))
        assert (tmp_path / "died").exists()

    def test_workers_that_die_again_and_again_end_the_job(self) -> None:
        with pytest.raises(InputError, match=f"died {MAX_DEATHS} times .* fewer --workers"):
            list(self.tasks.map(die, range(2)))
        assert list(self.tasks.map(square, range(3))) == [0, 1, 4]


@pytest.mark.slow
def test_workers_end_with_the_process_that_requested_them(tmp_path):
    code = (
        "import os\n"
        "from tests.executors.test_tasks import told_pid\n"
        "from pipeline.tasks import Processes\n"
        "if __name__ == '__main__':\n"
        f"    next(Processes(1).map(told_pid, [{str(tmp_path / 'pid')!r}]))\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    (tmp_path / "killed.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, str(tmp_path / "killed.py")], env=environment, timeout=60, check=False)
    pid, end = int((tmp_path / "pid").read_text()), time.monotonic() + 10
    while psutil.pid_exists(pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid)


def told_pid(path):
    Path(path).write_text(str(os.getpid()))
