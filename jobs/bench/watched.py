"""A command run as its users run it, with the time that it takes and the memory of all its processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PERIOD_S = 0.5
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Watched:
    """`seconds` of wall time; `peak_gb`: the largest memory of the process and all its descendants, seen
    every half second, 10^9 bytes; pages that several share are shared out among them (PSS).
    """

    seconds: float
    peak_gb: float
    output: str


def watched(command: Sequence[str]) -> Watched:
    """Run `python -m COMMAND` to its end; RuntimeError with what it printed when it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )
    root, peak = psutil.Process(process.pid), 0
    while True:
        try:
            output, _ = process.communicate(timeout=PERIOD_S)
            break
        except subprocess.TimeoutExpired:  # it goes on; what it printed is kept
            peak = max(peak, memory(root))
    seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output[-4000:]}")
    return Watched(seconds, peak / 1e9, output)


def memory(root: psutil.Process) -> int:
    """Bytes of a process and its descendants; one that ends meanwhile counts nothing."""
    try:
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(map(_own, tree))


def _own(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
