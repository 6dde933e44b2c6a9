"""The memory of jobs over a store does not grow with the number of shards."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs.large import build_large

ROOT = Path(__file__).parents[2]

JOB = """
import sys
from pathlib import Path
from jobs.tables.coactivation import coactivation
from jobs.lake.compact import compact
from jobs.tables.profile import profile
from jobs.tables.rank import rank
from jobs.tables.stats import stats
from jobs.lake.verify import verify
from pipeline.statistics.profile import tallies
from pipeline.store import FeatureStore
from pipeline.store.derived import features, profile as profiles
from pipeline.store.formats import postings
from pipeline.store.upkeep import compaction
features._BATCH_BYTES, compaction.IN_MEMORY_NNZ, compaction.GROUP_NNZ = 1 << 19, 1 << 15, 1 << 13
profiles.RANGE_BYTES, tallies._WAITING, postings._RUN_NNZ = 1 << 21, 1 << 14, 1 << 15
store = FeatureStore.open(sys.argv[1])


def peak():  # of this program: ru_maxrss would count that of the process it was forked from
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("VmHWM"))


for job in (compact, stats, rank, profile, coactivation):
    job(store, "site")
    print(job.__name__, peak())
verify(FeatureStore.open(sys.argv[1]))
print("verify", peak())
"""


def peaks(root: Path, shards: int) -> dict[str, int]:
    """Peak resident memory after each job in one process, kB; of two runs the smaller (allocators vary)."""
    result = [_peaks_of(root / name, shards) for name in ("a", "b")]
    return {job: min(run[job] for run in result) for job in result[0]}


def _peaks_of(root: Path, shards: int) -> dict[str, int]:
    build_large(root, shards=shards, rows=1024, d_sae=512, l0=30)
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(root)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}


@pytest.mark.slow
def test_64_shards_peak_no_higher_than_8(tmp_path: Path) -> None:
    few, many = peaks(tmp_path / "few", 8), peaks(tmp_path / "many", 64)
    assert list(few) == ["compact", "stats", "rank", "profile", "coactivation", "verify"]
    for job, peak in few.items():
        assert many[job] <= 1.05 * peak, job
