"""The device follows the run file, and is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.models import device
from schemas.errors import InputError


def test_auto_takes_the_gpu_only_when_the_worker_is_given_one() -> None:
    assert device.choose_device("auto", 0) == "cpu"
    assert device.choose_device("auto", 0.5) == "cuda"
    assert device.choose_device("cuda", 0) == "cuda"
    assert device.choose_device("cpu", 1) == "cpu"


def test_a_gpu_that_is_not_there_is_an_error_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"torch sees none here: set model\.device: cpu"):
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
