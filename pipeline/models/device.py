"""Which device a worker computes on, what it is called, what memory it has, and how its errors differ."""

from __future__ import annotations

import gc
import os
import platform
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from schemas.errors import InputError, NodeError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from schemas.run.file import Extract

CPU_INFO = Path("/proc/cpuinfo")

MEMORY_WAIT_S = 120.0
"""How long a worker waits for its GPU's memory: a process that was killed gives it back within seconds."""


NOT_SET = "on a Ray cluster workers get GPUs by extract.gpus_per_worker, which is not set"


class GpuChoice(NamedTuple):
    """GPUs of each worker, and, where `auto` means the CPU, why."""

    gpus: float
    why_cpu: str | None = None


def choose_gpus(device: str, extract: Extract, begun_on: str | None) -> GpuChoice:
    """GPUs of a worker for model.device and the section extract, where that names none.

    `begun_on`: the device of the pass if it was begun, on which it stays: on another one its last bits could
    differ. Of the machines of a cluster nothing is known here.
    """
    if extract.gpus_per_worker is not None:
        return GpuChoice(extract.gpus_per_worker)
    if device != "auto":
        return GpuChoice(float(device == "cuda"))
    if begun_on is not None:
        why = None if begun_on == "cuda" else "the pass was begun on it"
        return GpuChoice(float(begun_on == "cuda"), why)
    if extract.ray_address != "local":
        return GpuChoice(0, NOT_SET)
    why = why_no_gpu()
    return GpuChoice(float(why is None), why)


def why_no_gpu() -> str | None:
    """Why torch computes on no GPU in this process; None where it does."""
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA"
    if (hidden := os.environ.get("CUDA_VISIBLE_DEVICES")) in ("", "-1"):
        return f"CUDA_VISIBLE_DEVICES is {hidden!r}, which hides every GPU"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:  # no driver, one that is too old, no device
        return " ".join(str(error).split()).partition(". ")[0].rstrip(".")
    return "torch sees no GPU"


def choose_device(device: str, gpus_per_worker: float) -> str:
    """`cpu` or `cuda` for the run file's model.device; `auto` takes the GPU when the worker is given one.

    A worker sees its own GPUs only (Ray sets CUDA_VISIBLE_DEVICES), so `cuda` is the first of them. The
    driver chooses, and may itself have no GPU.
    """
    if device == "auto":
        return "cuda" if gpus_per_worker > 0 else "cpu"
    return device


def device_here(device: str) -> str:
    """`auto` takes a GPU where torch sees one in this process."""
    if device != "auto":
        return device
    return "cuda" if why_no_gpu() is None else "cpu"


def require_device(device: str) -> None:
    """InputError where torch cannot compute on `device` in this process."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "the run file asks for a GPU (model.device or extract.gpus_per_worker), but torch finds none "
            "here: set model.device: cpu and extract.gpus_per_worker: 0, or run where there is one"
        )


def wait_for_memory(device: str, needed: int, limit_s: float | None = None, poll_s: float = 1.0) -> None:
    """Wait until `needed` bytes are free on a GPU; NodeError when they are not within MEMORY_WAIT_S.

    The memory of a worker that was killed comes back only when its process, and those it began, are gone.
    """
    if device != "cuda":
        return
    require_device(device)
    import torch

    deadline = time.monotonic() + (MEMORY_WAIT_S if limit_s is None else limit_s)
    while True:
        free, total = torch.cuda.mem_get_info()
        if free >= needed:
            return
        if total < needed or time.monotonic() > deadline:
            raise NodeError(
                f"the GPU of a worker on {socket.gethostname()} has {free / 1e9:.1f} of {total / 1e9:.1f} GB "
                f"free, but model and SAEs need {needed / 1e9:.1f}: end the programs that hold the rest "
                "(see nvidia-smi), or put fewer workers on a GPU (extract.gpus_per_worker)"
            )
        time.sleep(poll_s)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU's memory did not do: the process is fine, and may try again."""
    import torch

    return isinstance(error, torch.cuda.OutOfMemoryError)


def is_broken(error: BaseException) -> bool:
    """Whether this process cannot use its GPU any more (illegal access, device-side assert).

    CUDA gives the same error to every later call, so that only a new process helps. It is recognised by its
    words, for such errors come as RuntimeError from many libraries, and torch need not be here.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OutOfMemoryError" in names or not isinstance(error, RuntimeError):
        return False
    return "AcceleratorError" in names or "CUDA error" in str(error) or "device-side assert" in str(error)


def free_memory() -> None:
    """Give back what Python and torch's allocator hold of the GPU without using it."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()


def to_device(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array as a tensor on `device`; to a GPU through pinned memory: nothing waits for the copy."""
    import torch

    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def describe_device(device: str) -> str:
    """Model name of the processor that `cpu` or `cuda` means: another one may give other last bits."""
    if device == "cpu":
        lines = CPU_INFO.read_text("utf-8", "replace").splitlines() if CPU_INFO.is_file() else []
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
        return platform.processor() or platform.machine()
    import torch

    return str(torch.cuda.get_device_name(torch.device(device)))
