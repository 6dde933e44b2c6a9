"""Real Ray on this machine: pinning, killed workers, poison shards. A private session, ended by itself."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from jobs.lake.tokenize import tokenize_resolved
from pipeline.monitor import heartbeat
from pipeline.plans.plan import resolve
from pipeline.run import extract
from pipeline.store import FeatureStore
from schemas.errors import InputError
from schemas.layout import Layout
from tests.fixtures.runs import run_content, run_file
from tests.kit import tiny_lm

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """One private Ray for this module, with two faked GPUs."""
    import ray

    os.environ["LATENTLAKE_TEST_FOLDER"] = str(tmp_path_factory.mktemp("folder"))
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=80 * 2**20,
        _system_config={"metrics_report_interval_ms": 500},
    )
    yield
    ray.shutdown()


def prepared(folder, **changes):
    """A resolved run file over a lake whose tokens are written."""
    run, _ = resolve(run_file(folder, **changes))
    tokenize_resolved(run)
    return run, Layout(Path(run.store.root))


def commits(layout):
    return sorted(path.stem for path in layout.commits("mid").glob("*.json"))


def digests(layout):
    """sha256 of every committed object by shard."""
    receipts = FeatureStore.open(layout.root).receipts("mid")
    return {shard: [item.sha256 for item in receipt.objects] for shard, receipt in receipts.items()}


def test_a_worker_killed_at_any_commit_costs_at_most_the_shard_in_flight(session, tmp_path):
    calm_run, calm = prepared(tmp_path / "calm")
    extract(calm, calm_run)
    changes = {"store": {"root": str(tmp_path / "killed")}, "extract": {"executor": "ray", "workers": 2}}
    run, layout = prepared(tmp_path / "calm", **changes)
    events, received, killed = [], [], set()

    def observe(**event):
        events.append(event)
        if event["event"] not in ("committed", "quarantined"):
            return
        received.append(event["shard"])
        alive = [e["pid"] for e in events if e["event"] == "ready" and e["pid"] not in killed]
        if len(received) in (1, 3) and alive:
            killed.add(alive[-1])
            os.kill(alive[-1], signal.SIGKILL)

    result = extract(layout, run, on_event=observe)
    assert not result.failures
    assert sorted(received) == commits(layout) == commits(calm)
    assert killed
    assert [e["event"] for e in events].count("worker_replaced") == len(killed)
    begun = [json.loads(line)["event"] for line in layout.events("mid").read_text().splitlines()]
    assert begun.count("retry") <= len(killed)
    assert digests(layout) == digests(calm)
    assert FeatureStore.open(layout.root).verify().problems == []


def test_x_has_the_same_bytes_from_two_workers_as_in_process(session, tmp_path):
    layouts = ["token_major", "feature_major", "dense"]
    calm_run, calm = prepared(tmp_path / "calm", store={"layouts": layouts})
    extract(calm, calm_run)
    changes = {
        "store": {"root": str(tmp_path / "shared"), "layouts": layouts},
        "extract": {"executor": "ray", "workers": 2},
    }
    run, layout = prepared(tmp_path / "calm", **changes)
    ready = []
    result = extract(
        layout, run, on_event=lambda **event: ready.append(event) if event["event"] == "ready" else None
    )
    assert not result.failures
    assert len({event["pid"] for event in ready}) == 2
    assert digests(layout) == digests(calm)
    for one, two in zip(*(FeatureStore.open(at.root).dense("mid") for at in (calm, layout)), strict=True):
        assert one.read().tobytes() == two.read().tobytes()
        assert one.read().any()


def test_a_shard_that_kills_its_process_is_quarantined_and_the_rest_is_committed(session, tmp_path):
    run, layout = prepared(
        tmp_path,
        model={"path": "tests.executors.test_ray_backend:deadly_lm"},
        extract={"executor": "ray", "workers": 1, "max_attempts": 2},
        corpus={"path": str(deadly_corpus(tmp_path))},
    )
    given_up = r"1 of \d+ shards were quarantined.*worker lost.*process has died.*2 attempts"
    with pytest.raises(InputError, match=given_up):
        extract(layout, run)
    shards = FeatureStore.open(layout.root).shards
    assert len(commits(layout)) == len(shards) - 1


def test_after_a_wrong_hook_and_a_poisoned_model_the_corrected_run_file_just_works(session, tmp_path):
    sae = run_content(tmp_path)["sites"][0]["sae"]
    wrong = {"sites": [{"name": "mid", "sae": sae, "hook_name": "layers.7"}]}
    run, layout = prepared(tmp_path, extract={"executor": "ray", "workers": 2}, **wrong)
    with pytest.raises(InputError, match=r"layers\.7"):
        extract(layout, run)
    assert not layout.plan("mid").exists()
    poisoned = {"model": {"path": "tests.plans.test_passes:poisoned_lm"}}
    run, _ = prepared(tmp_path, extract={"executor": "ray", "workers": 2}, **poisoned)
    with pytest.raises(InputError, match="shards were quarantined"):
        extract(layout, run)
    assert layout.plan("mid").exists()
    run, _ = prepared(tmp_path, extract={"executor": "ray", "workers": 2})
    assert not extract(layout, run).failures
    assert FeatureStore.open(layout.root).verify().problems == []


def test_a_run_whose_plan_is_replaced_ends_with_one_sentence(session, tmp_path):
    run, layout = prepared(tmp_path, extract={"executor": "ray", "workers": 2})
    events = []

    def take_away(**event):
        events.append(event["event"])
        if event["event"] == "ready":
            layout.plan("mid").unlink(missing_ok=True)

    with pytest.raises(InputError, match="is not the plan that this run began with"):
        extract(layout, run, on_event=take_away)
    assert "retry" not in events
    assert commits(layout) == []


def deadly_corpus(folder):
    """The corpus with the token w60 in one document."""
    import polars as pl

    from tests.fixtures.runs import write_corpus

    folder.mkdir(exist_ok=True)
    corpus = pl.read_parquet(write_corpus(folder / "deadly.parquet"))
    texts = corpus["text"].to_list()
    texts[10] += " w60"
    corpus.with_columns(text=pl.Series(texts)).write_parquet(folder / "deadly.parquet")
    return folder / "deadly.parquet"


def deadly_lm():
    """The tiny model, that ends its process at the token w60 (id 63)."""
    from tests.kit import tiny_lm

    model = tiny_lm()
    model.embed.register_forward_pre_hook(lambda module, args: os._exit(9) if (args[0] == 63).any() else None)
    return model


def breaking_lm():
    """The tiny model, on a GPU that breaks at the token w60 (id 63), until a file says that it did."""
    from tests.kit import tiny_lm

    def look(module, args):
        broken = Path(os.environ["LATENTLAKE_TEST_FOLDER"], "broken")
        if (args[0] == 63).any() and not broken.exists():
            broken.touch()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    model = tiny_lm()
    model.embed.register_forward_pre_hook(look)
    return model


@pytest.fixture(scope="module")
def broken(session, tmp_path_factory):
    """A run during which a GPU breaks: its layout and its events."""
    folder = tmp_path_factory.mktemp("broken")
    run, layout = prepared(
        folder,
        model={"path": "tests.executors.test_ray_backend:breaking_lm"},
        extract={"executor": "ray", "workers": 1},
        corpus={"path": str(deadly_corpus(folder))},
    )
    events = []
    extract(layout, run, on_event=lambda **event: events.append(event))
    return layout, events


def test_a_worker_whose_gpu_breaks_is_lost_and_the_run_goes_on_in_a_new_process(broken):
    layout, events = broken
    (lost,) = [event for event in events if event["event"] == "worker_replaced"]
    assert lost["why"].startswith(
        "worker lost: its GPU is in an error state (RuntimeError: CUDA error: an illegal"
    )
    first, second = [event["pid"] for event in events if event["event"] == "ready"]
    assert first != second
    assert not process_lives(first)
    assert len(commits(layout)) == len(FeatureStore.open(layout.root).shards)


def process_lives(pid):
    """Whether it does, after it had a moment to end."""
    import time

    import psutil

    end = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" and time.monotonic() < end:
        time.sleep(0.1)
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"


def test_workers_log_json_lines_with_shard_and_node(broken):
    from ray._private.worker import global_worker

    layout, events = broken
    files = Path(global_worker.node.get_logs_dir_path()).glob("worker-*.err")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines() if line[:1] == "{"]
    committed = {line["shard"]: line for line in lines if line["event"] == "committed"}
    assert set(commits(layout)) <= set(committed)
    assert {line["node"] for line in committed.values()} == {
        e["node"] for e in events if e["event"] == "ready"
    }
    assert [line["level"] for line in lines if line["event"] == "gpu_broken"] == ["critical"]


def test_metrics_have_tags_of_few_values(broken):
    import time
    import urllib.request

    import ray

    wanted = {
        "latentlake_tokens",
        "latentlake_nonzeros",
        "latentlake_shard_seconds",
        "latentlake_failed_attempts",
    }
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    lines, end = [], time.monotonic() + 30
    while time.monotonic() < end and not all(any(name in line for line in lines) for name in wanted):
        time.sleep(0.5)
        with urllib.request.urlopen(address, timeout=10) as answer:
            lines = [
                line for line in answer.read().decode().splitlines() if line.startswith("ray_latentlake")
            ]
    tokens = next(line for line in lines if line.startswith("ray_latentlake_tokens"))
    assert 'pass="mid"' in tokens
    assert 'shard="' not in "".join(lines)
    assert any('why="lost"' in line for line in lines if "failed_attempts" in line)


def test_a_node_that_does_not_see_the_store_is_refused(session, tmp_path, monkeypatch):
    from contextlib import nullcontext

    from pipeline.executors.node_probe import ProbeFile
    from pipeline.executors.on_ray import actors as ray_backend

    run, layout = prepared(tmp_path, extract={"executor": "ray"})
    elsewhere = ProbeFile(str(layout.root / ".probe.none.tmp"), "x")
    monkeypatch.setattr(ray_backend, "storage_probe", lambda root: nullcontext(elsewhere))
    with pytest.raises(InputError, match=rf"^node \S+ does not see the driver's files in {layout.root}"):
        extract(layout, run)
    assert commits(layout) == []


def test_rows_of_a_shard_in_flight_are_heard_of_from_the_actor(session, tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "HEARTBEAT_S", 0.2)
    model = {"path": "tests.executors.test_ray_backend:slow_lm"}
    changes = {"tokens": {"shard_tokens": 10**6}, "extract": {"executor": "ray"}, "model": model}
    run, layout = prepared(tmp_path, **changes)
    beats = []
    result = extract(layout, run, on_event=lambda **event: beats.append(event.get("in_flight", {})))
    heard = [rows["000000"] for rows in beats if rows.get("000000")]
    assert len(set(heard)) > 1
    assert sorted(heard) == heard
    assert heard[-1] <= result.rows == result.tally.rows


def slow_lm():
    """The tiny model, with 0.1 s for each batch."""
    model = tiny_lm()
    model.embed.register_forward_hook(lambda module, args, out: time.sleep(0.1))
    return model
