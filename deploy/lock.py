"""Write deploy/requirements.txt: what the image installs, but for torch, each file with its sha256.

    python deploy/lock.py           # or `make lock`: after constraints.txt or pyproject.toml changed

The packages are those that this environment (`make setup`) has for the package's dependencies, those of its
extras `run` and `ray`, and theirs, at the versions of constraints.txt; pip says which files it would install
for CPython 3.11 on Linux, x86_64 and aarch64. torch is left out: its builds differ by hardware, and hashes
would allow one of them alone.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
OUT = ROOT / "deploy/requirements.txt"
MACHINES = ("x86_64", "aarch64")
GLIBC = (17, 24, 26, 27, 28, 31, 34, 35, 36, 39)
"""Minor versions of glibc 2 whose wheels Debian 13 takes."""
OF_TORCH = ("torch", "triton", "nvidia-", "cuda-")
HEAD = """\
# Made by `make lock` (deploy/lock.py) from constraints.txt and pyproject.toml. For CPython 3.11 on Linux,
# x86_64 and aarch64: pip install --no-deps --require-hashes --requirement deploy/requirements.txt
"""


def canonical(name: str) -> str:
    """A project's name as indexes know it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    """Name -> version, of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonical(name): version for name, version in pairs}


def needed() -> set[str]:
    """Names of the package's dependencies and of theirs, on either machine; without torch and its own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: set[tuple[str, str]] = set()
    extras = project["optional-dependencies"]
    rest = list(_applying([*project["dependencies"], *extras["run"], *extras["ray"]], ""))
    while rest:
        name, extra = rest.pop()
        if (name, extra) not in found and not name.startswith(OF_TORCH):
            found.add((name, extra))
            rest += [(name, ""), *_applying(requires(name) or [], extra)]
    return {name for name, _ in found}


def _applying(lines: Iterable[str], extra: str) -> Iterator[tuple[str, str]]:
    """Name and extra of what the lines ask for, on CPython 3.11 on Linux."""
    for line in lines:
        wanted = Requirement(line)
        environments = ({**default_environment(), "platform_machine": m, "extra": extra} for m in MACHINES)
        if wanted.marker is None or any(map(wanted.marker.evaluate, environments)):
            yield from ((canonical(wanted.name), each) for each in ("", *wanted.extras))


def report(machine: str, pins: Iterable[str]) -> list[dict[str, Any]]:
    """The files that pip would install on a machine."""
    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in GLIBC]
    platforms += [f"--platform=manylinux{old}_{machine}" for old in ("2010", "2014")]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--no-deps", "--report", f"{folder}/report.json", "--target", f"{folder}/target"]
        command += ["--implementation=cp", "--abi=cp311", "--abi=abi3", "--abi=none", "--python-version=3.11"]
        subprocess.run([*command, *platforms, *pins], check=True)
        found = json.loads(Path(folder, "report.json").read_text(encoding="utf-8"))
    installed: list[dict[str, Any]] = found["install"]
    return installed


def lock(reports: Iterable[list[dict[str, Any]]]) -> str:
    """The file's text: name==version, and the sha256 of each machine's file."""
    hashes: dict[str, set[str]] = {}
    for each in (each for installed in reports for each in installed):
        pin = f"{canonical(each['metadata']['name'])}=={each['metadata']['version']}"
        hashes.setdefault(pin, set()).add(each["download_info"]["archive_info"]["hashes"]["sha256"])
    lines = [
        f"{pin} \\\n" + " \\\n".join(f"    --hash=sha256:{value}" for value in sorted(values))
        for pin, values in sorted(hashes.items())
    ]
    return HEAD + "\n".join(lines) + "\n"


def main() -> None:
    """Write the file."""
    versions = pinned()
    pins = [f"{name}=={versions[name]}" for name in sorted(needed())]
    OUT.write_text(lock(report(machine, pins) for machine in MACHINES), encoding="utf-8")


if __name__ == "__main__":
    main()
