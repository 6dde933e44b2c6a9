"""The device follows the run file, and is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.models import device
from schemas.errors import InputError, NodeError
from schemas.run.file import Extract


def test_auto_takes_the_gpu_only_when_the_worker_is_given_one() -> None:
    assert device.choose_device("auto", 0) == "cpu"
    assert device.choose_device("auto", 0.5) == "cuda"
    assert device.choose_device("cuda", 0) == "cuda"
    assert device.choose_device("cpu", 1) == "cpu"


class FakeCuda:
    """What torch says of CUDA: how it was built, whether there is a GPU, and why it could not begin."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, version: str | None, why: str | None) -> None:
        self.why = why
        monkeypatch.setattr(torch, "__version__", "2.12.0+cpu" if version is None else "2.12.0+cu130")
        monkeypatch.setattr(torch.version, "cuda", version)
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: why is None)
        monkeypatch.setattr(torch.cuda, "init", self.init)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def init(self) -> None:
        raise RuntimeError(self.why)


TOO_OLD = "The NVIDIA driver on your system is too old (found version 11040)"


@pytest.mark.parametrize(
    ("version", "visible", "why", "expected"),
    [
        (None, None, "Torch not compiled with CUDA enabled", "torch 2.12.0+cpu is built without CUDA"),
        ("13.0", "", "No CUDA GPUs are available", "CUDA_VISIBLE_DEVICES is '', which hides every GPU"),
        ("13.0", "-1", "No CUDA GPUs are available", "CUDA_VISIBLE_DEVICES is '-1', which hides every GPU"),
        ("13.0", "0", "No CUDA GPUs are available", "No CUDA GPUs are available"),
        ("13.0", None, f"{TOO_OLD}. Please update your GPU driver by\n downloading one.", TOO_OLD),
        ("13.0", None, None, None),
    ],
)
def test_why_there_is_no_gpu_is_said(
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
    visible: str | None,
    why: str | None,
    expected: str | None,
) -> None:
    FakeCuda(monkeypatch, version, why)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device.why_no_gpu() == expected
    assert device.device_here("auto") == ("cuda" if expected is None else "cpu")


@pytest.mark.parametrize(
    ("chosen", "options", "begun_on", "expected"),
    [
        ("auto", {}, None, (1, None)),
        ("cuda", {}, None, (1, None)),
        ("cpu", {}, None, (0, None)),
        ("auto", {"gpus_per_worker": 0}, None, (0, None)),
        ("cpu", {"gpus_per_worker": 0.5}, None, (0.5, None)),
        ("auto", {}, "cpu", (0, "the pass was begun on it")),
        ("auto", {}, "cuda", (1, None)),
        ("auto", {"address": "h:1"}, None, (0, device.NOT_SET)),
        ("auto", {"address": "h:1", "gpus_per_worker": 1}, None, (1, None)),
        ("auto", {"address": "h:1", "executor": "in_process"}, None, (1, None)),
    ],
)
def test_workers_get_the_gpu_that_there_is_where_nothing_else_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
    chosen: str,
    options: dict[str, Any],
    begun_on: str | None,
    expected: tuple[float, str | None],
) -> None:
    FakeCuda(monkeypatch, "13.0", None)
    assert device.choose_gpus(chosen, Extract(**options), begun_on) == expected


def test_without_a_gpu_auto_says_why_and_cuda_is_left_to_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, None, "no")
    why = "torch 2.12.0+cpu is built without CUDA"
    assert device.choose_gpus("auto", Extract(), None) == (0, why)
    assert device.choose_gpus("auto", Extract(gpus_per_worker=1), None) == (1, None)
    assert device.choose_gpus("cuda", Extract(), None) == (1, None)


def test_a_gpu_that_is_not_there_is_an_error_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"torch finds none here: set model\.device: cpu"):
        device.require_device("cuda")
    device.require_device("cpu")


def test_the_processor_has_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    assert device.describe_device("cpu")
    path = device.Path(str(tmp_path)) / "cpuinfo"
    path.write_text("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\nflags\t: sse\n")
    monkeypatch.setattr(device, "CPU_INFO", path)
    assert device.describe_device("cpu") == "A CPU @ 2 GHz"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda chosen: f"card of {chosen}")
    assert device.describe_device("cuda") == "card of cuda"


class FakeMemory:
    """A GPU whose free memory grows with every look at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: list[float], total: float = 80e9) -> None:
        self.free, self.total, self.waited = list(free), total, 0.0
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", self.info)
        monkeypatch.setattr(device.time, "monotonic", lambda: self.waited)
        monkeypatch.setattr(device.time, "sleep", self.sleep)

    def info(self) -> tuple[float, float]:
        return (self.free.pop(0) if len(self.free) > 1 else self.free[0]), self.total

    def sleep(self, seconds: float) -> None:
        self.waited += seconds


def test_a_worker_waits_for_the_memory_that_a_killed_one_still_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = FakeMemory(monkeypatch, [1e9, 1e9, 1e9, 9e9])
    device.wait_for_memory("cuda", 8 * 10**9)
    assert memory.waited == 3
    device.wait_for_memory("cpu", 10**15)


def test_memory_that_does_not_come_back_refuses_the_node_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = FakeMemory(monkeypatch, [1e9])
    with pytest.raises(
        NodeError,
        match=r"has 1\.0 of 80\.0 GB free, but model and SAEs need 8\.0: end the programs that hold",
    ):
        device.wait_for_memory("cuda", 8 * 10**9)
    assert memory.waited == pytest.approx(device.MEMORY_WAIT_S, abs=2)


def test_a_gpu_that_is_too_small_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = FakeMemory(monkeypatch, [7e9], total=8e9)
    with pytest.raises(NodeError, match=r"model and SAEs need 9\.0"):
        device.wait_for_memory("cuda", 9 * 10**9)
    assert memory.waited == 0


@pytest.mark.parametrize(
    ("error", "out_of_memory", "broken"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (ValueError("CUDA error: no"), False, False),
    ],
)
def test_errors_of_the_gpu_are_distinguished(error: Exception, out_of_memory: bool, broken: bool) -> None:
    assert device.is_out_of_memory(error) == out_of_memory
    assert device.is_broken(error) == broken


def test_arrays_come_to_the_device_as_they_are() -> None:
    array = np.arange(6, dtype=np.int64).reshape(2, 3)
    tensor = device.to_device(array, torch.device("cpu"))
    assert tensor.dtype == torch.int64
    assert tensor.tolist() == array.tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_arrays_come_to_a_gpu_without_waiting() -> None:
    array = np.arange(6, dtype=np.int64)
    torch.cuda.set_sync_debug_mode("error")
    try:
        tensor = device.to_device(array, torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert tensor.tolist() == array.tolist()
