"""Which device a worker computes on, and what it is called."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schemas.errors import InputError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

CPU_INFO = Path("/proc/cpuinfo")


def choose_device(device: str, gpus_per_worker: float) -> str:
    """`cpu` or `cuda` for the run file's model.device; `auto` takes the GPU when the worker is given one.

    A worker sees its own GPUs only (Ray sets CUDA_VISIBLE_DEVICES), so `cuda` is the first of them. The
    driver chooses, and may itself have no GPU.
    """
    if device == "auto":
        return "cuda" if gpus_per_worker > 0 else "cpu"
    return device


def require_device(device: str) -> None:
    """InputError where torch can not compute on `device` in this process."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "the run file asks for a GPU (model.device or extract.gpus_per_worker), but torch sees none "
            "here: set model.device: cpu and extract.gpus_per_worker: 0, or run where there is one"
        )


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array as a tensor on `device`; to a GPU through pinned memory: nothing waits for the copy."""
    import torch

    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def describe_device(device: str) -> str:
    """Model name of the processor behind `cpu` or `cuda`: another one may give other last bits."""
    if device == "cpu":
        return _cpu_name()
    import torch

    return str(torch.cuda.get_device_name(torch.device(device)))


def _cpu_name() -> str:
    """The kernel's model name, else the platform's."""
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
