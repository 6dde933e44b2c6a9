"""Why the CPU is used is printed once, by the commands that choose a device, where nobody chose it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.command.tasks import device_for
from jobs.lake.extract import extract
from jobs.lake.tokenize import tokenize
from jobs.terminal.console import say_cpu
from pipeline.store import FeatureStore
from tests.fixtures.runs import run_file

WHY = "torch 0 is built without CUDA"


@pytest.fixture(autouse=True)
def _a_new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No GPU, and nothing printed so far."""
    monkeypatch.setattr("pipeline.models.device.why_no_gpu", lambda: WHY)
    say_cpu.cache_clear()
    yield
    say_cpu.cache_clear()


def two_passes(folder: Path, **changes: dict[str, object]) -> FeatureStore:
    """A store of two passes, extracted one after the other."""
    changes = {"extract": {"gpus_per_worker": None}} | changes
    (site,) = run_file(folder).sites
    tokenize(run_file(folder, **changes))
    for name in ("first", "second"):
        sites = [{"name": name, "sae": site.sae}]
        extract(run_file(folder, **changes, sites=sites))
    return FeatureStore.open(folder / "store")


def notes(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().out.splitlines() if "device auto" in line]


def test_two_passes_and_a_job_that_runs_the_model_say_it_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = two_passes(tmp_path)
    assert device_for(store.plans["first"], "auto", None) == "cpu"
    assert notes(capfd) == [f"note: device auto: the CPU, because {WHY}"]
    assert {plan.device for plan in store.plans.values()} == {"cpu"}


def test_nothing_is_printed_where_the_cpu_was_chosen(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = two_passes(tmp_path, model={"device": "cpu"})
    assert device_for(store.plans["first"], "cpu", None) == "cpu"
    assert notes(capfd) == []


def test_a_pass_stays_on_its_device_where_a_gpu_came(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = two_passes(tmp_path, model={"device": "cpu"})
    monkeypatch.setattr("pipeline.models.device.why_no_gpu", lambda: None)
    sites = [{"name": "first", "sae": run_file(tmp_path).sites[0].sae}]
    again = run_file(tmp_path, sites=sites, extract={"gpus_per_worker": None})
    extract(again)  # nothing to do
    assert notes(capfd) == []
    name = store.shards[-1].name
    commit = store.layout.commit("first", name)
    commit.unlink()
    extract(again)
    assert notes(capfd) == ["note: device auto: the CPU, because the pass was begun on it"]
    assert FeatureStore.open(tmp_path / "store").receipts("first").keys() == store.receipts("first").keys()
