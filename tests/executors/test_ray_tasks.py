"""Tasks on a private Ray give what they give in one process."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import pytest

from jobs.lake.compact import compact
from jobs.tables.cluster import cluster
from jobs.tables.coactivation import coactivation
from jobs.tables.stats import stats
from pipeline.store import FeatureStore
from pipeline.tasks import OneProcess
from schemas.errors import InputError, NodeError
from schemas.run.file import Cluster
from tests.executors.test_tasks import TaskConformance, die, die_once
from tests.jobs.test_cluster import built_store
from tests.store.test_site_tables import table_bytes

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(autouse=True, scope="class")
def started(request):
    import ray

    from pipeline.executors.on_ray.tasks import RayTasks

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 2**20,
    )
    with RayTasks() as tasks:
        request.cls.tasks = tasks
        yield
    ray.shutdown()


def threads(_: int) -> tuple[str | None, str | None]:
    return os.environ.get("POLARS_MAX_THREADS"), os.environ.get("OMP_NUM_THREADS")


class TestRayTasks(TaskConformance):
    def test_libraries_take_as_many_threads_as_the_task_has_cpus(self) -> None:
        assert list(self.tasks.map(threads, [0])) == [("1", "1")]

    def test_a_task_whose_worker_dies_is_done_again(self, tmp_path: Path) -> None:
        assert list(self.tasks.map(partial(die_once, tmp_path), range(4))) == list(range(4))

    def test_a_task_that_kills_every_worker_ends_the_job(self) -> None:
        with pytest.raises(InputError, match="died 3 times"):
            list(self.tasks.map(die, [0]))

    def test_a_node_that_does_not_see_the_store_is_reported_as_such(self, tmp_path: Path) -> None:
        from pipeline.executors.on_ray.tasks import RayTasks

        with RayTasks(root=tmp_path) as tasks:
            assert list(tasks.map(abs, [-1])) == [1]
            next(tmp_path.glob(".probe.*")).unlink()
            with pytest.raises(NodeError, match="does not see the driver's files in"):
                list(tasks.map(abs, [-1]))

    def test_jobs_give_the_same_bytes_as_in_one_process(self, tmp_path: Path) -> None:
        result = {}
        for name, tasks in {"one": OneProcess(), "ray": self.tasks}.items():
            built_store(tmp_path / name, shards=4)
            store = FeatureStore.open(tmp_path / name)
            stats(store, "site", tasks)
            coactivation(store, "site", tasks, support=1)
            compact(store, "site", tasks)
            store = FeatureStore.open(tmp_path / name)
            cluster(store, "site", Cluster(features=4, contexts=3), tasks)
            assert store.verify(tasks).problems == []
            result[name] = table_bytes(store), [f.sha256 for f in store.compacted("site").record.files]
        assert result["one"] == result["ray"]
