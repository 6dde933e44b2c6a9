"""A command run as its users run it, with the time that it takes and the memory of all its processes."""

from __future__ import annotations

import subprocess
import sys
import threading
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
    peak = _Peak(process.pid)
    output, _ = process.communicate()
    seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output[-4000:]}")
    return Watched(seconds, peak.stop() / 1e9, output)


class _Peak:
    """Measures a tree of processes from a thread."""

    def __init__(self, pid: int) -> None:
        self._root, self._bytes, self._done = psutil.Process(pid), 0, threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """The largest sum that was seen, in bytes."""
        self._done.set()
        self._thread.join()
        return self._bytes

    def _poll(self) -> None:
        while not self._done.wait(PERIOD_S):
            self._bytes = max(self._bytes, memory(self._root))


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
