"""Runs that are hurt in every way, again and again, must end with the bytes of a calm one.

    python -m tests.programs.soak --minutes 10 [--seed 0] [--only workers,drivers,race,node,drain,disk]

Nodes are raylets on this machine, drivers are processes of their own, and what is hurt is drawn at random. It
goes on until the time is over and every wound came as often as `WOUNDS` wants it. The short form of it is
`tests/programs/test_soak.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import yaml

from pipeline.monitor.events import read_events
from pipeline.store import FeatureStore
from schemas.layout import Layout
from tests.fixtures.runs import data_bytes

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240.0


@dataclass
class Arena:
    """A folder for stores, a cluster of raylets, and the bytes that every store must end with."""

    folder: Path
    cluster: Any
    nodes: list[Any]
    random: random.Random
    shards: int = 24
    wounds: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    stores: int = 0

    def __post_init__(self) -> None:
        calm = self.new_store()
        self.run(calm, executor="in_process")
        self.expected = self.fingerprint(calm)

    def new_store(self) -> Path:
        """A folder that no run has used."""
        self.stores += 1
        return self.folder / f"store-{self.stores}"

    def write_run_file(self, root: Path, **extract: Any) -> Path:
        """A run file over `shards` small synthetic shards."""
        content = {
            "corpus": {
                "kind": "synthetic",
                "documents": 20 * self.shards,
                "tokens_per_document": 100,
                "vocabulary": 512,
            },
            "tokens": {"shard_tokens": 2_000},
            "model": {"loader": "synthetic"},
            "sites": [{"name": "made", "sae": "synthetic:d_sae=2048,l0=30"}],
            "store": {"root": str(root)},
            "extract": {"cpus_per_worker": 1, "workers": 2, "max_attempts": 1000, **extract},
        }
        path = root.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(content))
        return path

    def driver(self, root: Path, command: str = "extract", **extract: Any) -> subprocess.Popen[str]:
        """A driver begins; its workers are on the cluster unless `extract` says otherwise."""
        extract = {"address": self.cluster.address, **extract}
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", command, str(self.write_run_file(root, **extract))],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,  # a run prints less than a pipe holds
            stderr=subprocess.STDOUT,
        )

    def run(self, root: Path, **extract: Any) -> None:
        """Tokenize and extract, and end well."""
        for command in ("tokenize", "extract"):
            finish(self.driver(root, command, **extract))

    def tokenized(self) -> Path:
        """A new store with its tokens."""
        root = self.new_store()
        finish(self.driver(root, "tokenize"))
        return root

    def committed(self, root: Path) -> int:
        """Shards of a store that are done."""
        return sum(1 for _ in root.glob("passes/*/commits/[0-9]*.json"))

    def fingerprint(self, root: Path) -> dict[str, str]:
        """sha256 of every committed data object and table, by a name without the attempt."""
        finish(self.driver(root, "stats"))
        store = FeatureStore.open(root)
        assert len(store.receipts("made")) == len(store.shards)
        named = {
            f"made/data/{shard}/{item.path}": item.sha256
            for shard, receipt in store.receipts("made").items()
            for item in receipt.objects
        }
        tables = {name: data for name, data in data_bytes(root).items() if name.startswith("tables/")}
        return named | {name: hashlib.sha256(data).hexdigest() for name, data in tables.items()}

    def check(self, root: Path) -> None:
        """The store is the calm one's, byte for byte, and agrees with itself."""
        result = self.fingerprint(root)
        differ = [name for name in self.expected | result if self.expected.get(name) != result.get(name)]
        assert not differ, f"{root} differs from a calm run in {differ[:5]}"
        problems = FeatureStore.open(root).verify().problems
        assert not problems, problems


def finish(driver: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a driver, which must end with `code`; what it printed."""
    output, _ = driver.communicate(timeout=PATIENCE_S)
    assert driver.returncode == code, f"ended with {driver.returncode}, not {code}:\n{output}"
    return output


def workers_killed(arena: Arena, kills: int = 10) -> None:
    """Workers are killed at random moments, also while they load, write and commit.

    Not more than three between two commits: a driver gives up when four in a row die while they load.
    """
    root = arena.tokenized()
    driver, after = arena.driver(root), list[int]()
    while kills and driver.poll() is None:
        time.sleep(arena.random.uniform(0.0, 0.8))
        done = arena.committed(root)
        if after[-3:] != 3 * [done] and (workers := actors()):
            with contextlib.suppress(psutil.NoSuchProcess):
                arena.random.choice(workers).kill()
                arena.wounds["worker killed"] += 1
                after.append(done)
                kills -= 1
    finish(driver)
    arena.check(root)


def drivers_killed(arena: Arena, kills: int = 6) -> None:
    """The driver is killed at random moments and the command typed again, until nothing is left to do."""
    root = arena.tokenized()
    for _ in range(kills):
        driver = arena.driver(root)
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(arena.random.uniform(0.5, 3.5))
        if driver.poll() is None:
            kill = arena.random.random() < 0.75
            driver.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            arena.wounds["driver killed" if kill else "driver terminated"] += 1
        driver.communicate(timeout=PATIENCE_S)
    finish(arena.driver(root))
    arena.check(root)


def two_drivers(arena: Arena) -> None:
    """Two drivers run the same pass at once, so that every shard is a race of twins for its commit."""
    root = arena.tokenized()
    drivers = [arena.driver(root, workers=1) for _ in range(2)]
    for driver in drivers:
        finish(driver)
    arena.wounds["shard raced"] += raced(root)
    arena.check(root)


def raced(root: Path) -> int:
    """Shards of which two runs asked a worker, so that twins may have raced for the commit."""
    layout, runs = Layout(root), defaultdict[str, set[str]](set)
    for event in read_events(layout, "made"):
        if event["event"] == "committed":
            runs[event["shard"]].add(event["run"])
    return sum(len(of_shard) > 1 for of_shard in runs.values())


def node_killed(arena: Arena) -> None:
    """A node is gone at once, with its workers; another comes."""
    root, driver, node = midway(arena)
    arena.cluster.remove_node(node, allow_graceful=False)
    arena.wounds["node killed"] += 1
    arena.nodes.append(arena.cluster.add_node(num_cpus=1))
    finish(driver)
    arena.check(root)


def node_drained(arena: Arena) -> None:
    """A node is drained, as in a spot market; no attempt is lost."""
    root, driver, node = midway(arena)
    drain = ["drain-node", "--address", arena.cluster.address, "--node-id", node.node_id]
    drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "soak"]
    ray = Path(sys.executable).with_name("ray")
    subprocess.run([ray, *drain, "--deadline-remaining-seconds", "5"], check=True, capture_output=True)
    arena.wounds["node drained"] += 1
    arena.nodes.append(arena.cluster.add_node(num_cpus=1))
    finish(driver)
    arena.check(root)
    with contextlib.suppress(Exception):  # it may have left by itself
        arena.cluster.remove_node(node)


def disk_full(arena: Arena) -> None:
    """The disk is full midway, which ends the run with one sentence; with more space it goes on."""
    root = arena.new_store()
    root.mkdir()
    size = sum(path.stat().st_size for path in (arena.folder / "store-1").rglob("*"))
    with mounted(root, int(size * arena.random.uniform(0.3, 0.8))) as grow:
        finish(arena.driver(root, "tokenize"))
        output = finish(arena.driver(root), code=2)
        assert "no space left" in output, output
        arena.wounds["disk full"] += 1
        grow(4 * size)
        finish(arena.driver(root))
        arena.check(root)


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[Callable[[int], object]]:
    """A disk of `size` bytes in memory at `folder`, and a call that makes it larger (needs root)."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield (
            lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True) and None
        )
    finally:
        subprocess.run(["umount", folder], check=True)


def may_mount() -> bool:
    """Whether this process may mount a disk."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=65536", "tmpfs", folder]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


def midway(arena: Arena) -> tuple[Path, subprocess.Popen[str], Any]:
    """A store, its driver when some shards are committed, and a node that will not stay."""
    root = arena.tokenized()
    driver = arena.driver(root)
    until_some_are_done(arena, root, driver)
    return root, driver, arena.nodes.pop(arena.random.randrange(len(arena.nodes)))


def until_some_are_done(arena: Arena, root: Path, driver: subprocess.Popen[str]) -> None:
    """Wait until a random number of shards is committed."""
    enough, began = arena.random.randrange(1, arena.shards // 2), time.monotonic()
    while arena.committed(root) < enough and driver.poll() is None:
        assert time.monotonic() - began < PATIENCE_S, "nothing was committed"
        time.sleep(0.05)


def actors() -> list[psutil.Process]:
    """Workers on the nodes that this process has started."""
    result = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if any("ExtractionActor" in part for part in process.cmdline()[:1]):
                result.append(process)
    return result


WOUNDS = {
    "workers": ("worker killed", 50),
    "drivers": ("driver killed", 20),
    "race": ("shard raced", 20),
    "node": ("node killed", 4),
    "drain": ("node drained", 4),
    "disk": ("disk full", 4),
}
"""By scenario the wound that it is for, and how often at least in ten minutes."""


SCENARIOS: dict[str, Callable[[Arena], None]] = {
    "workers": workers_killed,
    "drivers": drivers_killed,
    "race": two_drivers,
    "node": node_killed,
    "drain": node_drained,
    "disk": disk_full,
}


SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""A dead node is seen after some seconds, not half a minute."""


@contextlib.contextmanager
def raylets(nodes: int = 2) -> Iterator[tuple[Any, list[Any]]]:
    """A head without CPUs and nodes of one CPU each, in a session of their own."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20}
    # a short path: Ray's sockets lie below it
    with tempfile.TemporaryDirectory(prefix="ll", dir="/tmp", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "ray").mkdir()
        with mock.patch.dict(os.environ, SETTINGS | {"RAY_TMPDIR": folder}):
            cluster = Cluster(initialize_head=True, head_node_args=head)
            try:
                yield cluster, [cluster.add_node(num_cpus=1) for _ in range(nodes)]
            finally:
                cluster.shutdown()


def share(arena: Arena, name: str) -> float:
    """How much there was of what a scenario is for, as a share of what ten minutes should have."""
    wound, wanted = WOUNDS[name]
    return arena.wounds[wound] / wanted


def wanting(arena: Arena, names: list[str], minutes: float) -> bool:
    """Whether some wound came less often than it should in so many minutes."""
    return any(share(arena, name) < minutes / 10 for name in names)


def main() -> None:
    """Hurt runs until the time is over and the wounds are enough; the first store that differs ends it."""
    parser = argparse.ArgumentParser(prog="python -m tests.programs.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(SCENARIOS), help=f"of {', '.join(SCENARIOS)}")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if "disk" in names and not may_mount():
        print("disk: left out, this user may not mount a tmpfs")
        names.remove("disk")
    with tempfile.TemporaryDirectory() as folder, raylets() as (cluster, nodes):
        arena = Arena(Path(folder), cluster, nodes, random.Random(arguments.seed))
        began = time.monotonic()
        while time.monotonic() - began < 60 * arguments.minutes or wanting(arena, names, arguments.minutes):
            name = min(names, key=partial(share, arena))
            SCENARIOS[name](arena)
            arena.rounds += 1
            message = ", ".join(f"{n} {what}" for what, n in sorted(arena.wounds.items()))
            print(f"{time.monotonic() - began:6.0f} s  {name}: same bytes; so far {message}", flush=True)
    print(f"{arena.rounds} runs, each with the bytes of the calm one")


if __name__ == "__main__":
    main()
