"""Several raylets on this machine, with faked GPUs: pinning, a node killed hard, a node drained."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from jobs.lake.tokenize import tokenize_resolved
from jobs.tables.stats import stats
from pipeline.plans.plan import resolve
from pipeline.run import extract
from pipeline.store import FeatureStore
from schemas.layout import Layout
from tests.fixtures.runs import data_bytes, run_file, write_corpus

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DELAY, SEEN = "LATENTLAKE_TEST_DELAY_S", "LATENTLAKE_TEST_SEEN"
QUICK_DEATH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
PREEMPTION = 2
"""autoscaler.proto's DRAIN_NODE_REASON_PREEMPTION."""


def slow_lm():
    """The tiny model, which takes its time on the nodes, and writes down which GPUs its process sees."""
    from tests.kit import tiny_lm

    if folder := os.environ.get(SEEN):
        Path(folder, str(os.getpid())).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    model = tiny_lm()
    delay = float(os.environ.get(DELAY, 0))
    model.embed.register_forward_pre_hook(lambda module, args: time.sleep(delay))
    return model


class Nodes:
    """A head without a CPU for workers, and nodes of 2 CPUs and one faked GPU, numbered 5 and 7."""

    def __init__(self, seen):
        from ray.cluster_utils import Cluster

        self.seen = seen
        head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, "_system_config": QUICK_DEATH}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.alive = {}

    def fill(self):
        """Start the nodes that are missing."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(DELAY, "0.15")
            patch.setenv(SEEN, str(self.seen))
            for gpu in {"5", "7"} - set(self.alive):
                patch.setenv("CUDA_VISIBLE_DEVICES", gpu)
                self.alive[gpu] = self.cluster.add_node(wait=False, num_cpus=2, num_gpus=1)
        self.cluster.wait_for_nodes()

    def kill(self, gpu):
        """As when the power goes."""
        self.cluster.remove_node(self.alive.pop(gpu), allow_graceful=False)

    def drain(self, gpu):
        """As on a spot notice: half a minute is left."""
        from ray._private.worker import global_worker

        deadline_ms = int(1000 * (time.time() + 30))
        node_id = self.alive[gpu].node_id
        accepted, why = global_worker.gcs_client.drain_node(node_id, PREEMPTION, "spot", deadline_ms)
        assert accepted, why


@pytest.fixture(scope="module")
def nodes(tmp_path_factory, short_folder):
    import ray

    (short_folder / "ray").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(short_folder))
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        made = Nodes(tmp_path_factory.mktemp("seen"))
        made.fill()
        ray.init(address=made.cluster.address, log_to_driver=False)
        yield made
        ray.shutdown()
        made.cluster.shutdown()


def prepared(folder, root, **extraction):
    """A resolved run file over 18 small shards, whose tokens are written below `root`."""
    folder.mkdir(parents=True, exist_ok=True)
    run = run_file(
        folder,
        corpus={"path": str(write_corpus(folder / "corpus-30.parquet", documents=30))},
        model={"path": "tests.executors.test_ray_cluster:slow_lm", "device": "cpu"},
        tokens={"shard_tokens": 100},
        store={"root": str(root)},
        extract=extraction,
    )
    resolved, _ = resolve(run)
    tokenize_resolved(resolved)
    return resolved, Layout(root)


def finished(layout):
    """The bytes of data and tables of a finished store."""
    store = FeatureStore.open(layout.root)
    stats(store, "mid")
    return data_bytes(layout.root)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calm")
    run, layout = prepared(folder, folder / "calm")
    assert extract(layout, run).total > 12
    return folder, finished(layout)


class Run:
    """What happened in a run during which something happened to its nodes."""

    def __init__(self, calm, name, after, action, **extraction):
        folder, self.calm = calm
        run, self.layout = prepared(folder, folder / name, executor="ray", cpus_per_worker=1, **extraction)
        self.events, self.ended = [], 0

        def observe(**event):
            self.events.append(event)
            self.ended += event["event"] in ("committed", "quarantined")
            if self.ended == after and event["event"] in ("committed", "quarantined"):
                action(self)

        self.result = extract(self.layout, run, on_event=observe)
        self.bytes = finished(self.layout)

    def named(self, name):
        return [event for event in self.events if event["event"] == name]


@pytest.fixture(scope="module")
def killed(nodes, calm):
    """Two workers with a whole GPU each; both nodes are killed after four shards, and others come up."""

    def act(run):
        nodes.kill("5")
        nodes.kill("7")
        nodes.fill()

    nodes.fill()
    return Run(calm, "killed", 4, act, workers=2, gpus_per_worker=1)


@pytest.fixture(scope="module")
def drained(nodes, calm):
    """Three workers with half a GPU each; the node of one of them is drained after one shard."""
    nodes.fill()
    return Run(calm, "drained", 1, lambda run: nodes.drain("5"), workers=3, gpus_per_worker=0.5)


def test_two_whole_gpus_are_two_workers_on_two_nodes(killed):
    first, second = killed.named("ready")[:2]
    assert first["node"] != second["node"]
    assert {first["gpus"], second["gpus"]} == {("5",), ("7",)}


def test_no_worker_sees_another_ones_gpu(killed, drained, nodes):
    for event in killed.named("ready") + drained.named("ready"):
        assert (nodes.seen / str(event["pid"])).read_text() == event["gpus"][0]


def test_halves_share_a_gpu_and_no_third_fits(drained):
    shared = Counter(event["gpus"] for event in drained.named("ready")[:3])
    assert sorted(shared.values()) == [1, 2]
    assert set(shared) == {("5",), ("7",)}


def test_nodes_killed_hard_cost_the_shards_in_flight_and_change_no_byte(killed):
    assert [e["why"].partition(":")[0] for e in killed.named("worker_replaced")] == ["worker lost"] * 2
    assert len(killed.named("retry")) == 2
    assert not killed.result.failures
    assert killed.bytes == killed.calm


def test_workers_on_nodes_that_come_late_go_on(killed):
    ready = killed.named("ready")
    assert len(ready) == len({event["node"] for event in ready}) == 4


def test_a_drained_node_costs_no_attempt_and_changes_no_byte(drained):
    assert {e["why"] for e in drained.named("worker_replaced")} == {"its node is draining"}
    assert drained.named("retry") == []
    assert drained.bytes == drained.calm


def test_events_are_kept_with_the_store(drained):
    lines = drained.layout.events("mid").read_text().splitlines()
    kept = [json.loads(line)["event"] for line in lines]
    kinds = [event["event"] for event in drained.events]  # heartbeats are kept once a minute
    assert [each for each in kept if each != "heartbeat"] == [each for each in kinds if each != "heartbeat"]
