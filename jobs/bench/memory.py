"""The peak memory of encoding with a million features, above what lies there before (Linux only)."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.bench.inputs import write_sae
from jobs.bench.report import Section

D_MODEL, D_SAE, ROWS = 128, 1_048_576, 4_096
TARGET_GB = 1.5

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Result:
    """Gigabytes (10^9 bytes) of resident memory."""

    architecture: str
    nnz: int
    before: float
    """With the model's weights loaded."""
    above: float
    """Peak during encode, above that."""


def run(folder: Path, threads: int) -> Section:
    """Measure TopK and JumpReLU, each in a process of its own."""
    results = []
    for architecture in ("topk", "jumprelu"):
        write_sae(folder / architecture, architecture, D_MODEL, D_SAE)
        results.append(measure(folder / architecture, ROWS, threads))
    title = f"peak memory of encode, {ROWS:,} rows, d_model {D_MODEL}, d_sae {D_SAE:,} (GB)"
    columns = ("architecture", "nonzeros", "loaded", "peak above it", "target")
    rows = [
        [r.architecture, f"{r.nnz:,}", f"{r.before:.2f}", f"{r.above:.2f}", f"{TARGET_GB}"] for r in results
    ]
    return Section("memory", title, columns, rows, [asdict(r) for r in results])


def measure(folder: Path, rows: int, threads: int) -> Result:
    """Encode `rows` rows in a new process."""
    command = [sys.executable, "-m", "jobs.bench.memory", str(folder), str(rows), str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def main(folder: str, rows: str, threads: str) -> None:
    """What the new process does: print the result as JSON."""
    import torch

    from pipeline.saes import load_sae

    torch.set_num_threads(int(threads))
    encoder = load_sae(folder)
    x = torch.randn(int(rows), encoder.d_model, generator=torch.Generator().manual_seed(0))
    encoder.encode(x[:1] * 0)
    CLEAR.write_text("5")  # starts the peak anew
    before = kilobytes("VmRSS")
    nnz = encoder.encode(x).nnz
    above = kilobytes("VmHWM") - before
    print(json.dumps(asdict(Result(encoder.metadata.architecture, nnz, before / 1e6, above / 1e6))))


def kilobytes(field: str) -> float:
    """A line of /proc/self/status, in 1,000 bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1.024


if __name__ == "__main__":
    main(*sys.argv[1:])
