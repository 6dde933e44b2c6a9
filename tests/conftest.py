"""Shared fixtures. Torch runs on one thread, so that tests that run at the same time stay quick."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads of a run that wait do not spin: with more of them than cores, spinning makes torch ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ["RAY_AUTH_MODE"] = "disabled"  # a process cannot change it once Ray was there


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that processes which take files in turn end at about one time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def heap_of_earlier_files_frozen():
    """A garbage collection does not traverse what libraries and earlier files left, some gigabytes."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Plugins that are imported last look for referrers of their objects, which frozen ones are not."""
    gc.unfreeze()


@pytest.fixture(scope="module")
def short_folder():
    """A folder with a short path: Ray's sockets lie below it."""
    with tempfile.TemporaryDirectory(prefix="ll", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
