"""`python -m jobs.bench [PART ...]`: measure, print, and write tables into a folder."""

from __future__ import annotations

import argparse
import importlib
import tempfile
from pathlib import Path

from jobs.bench.report import Section
from jobs.terminal.console import console

PARTS = ("extraction", "encode", "peers", "memory")
LONG = ("shards", "scale", "jobs")
"""Parts that run only when they are named."""
OPTIONS = {"shards": ("shards",), "jobs": ("nonzeros",)}


def main() -> None:
    """Run the given parts, else all."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench", description=__doc__)
    known = f"of {', '.join(PARTS)} (default: all), {', '.join(LONG)}"
    parser.add_argument("parts", nargs="*", metavar="PART", help=known)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shards", type=int, default=20_000, help="of the part `shards`")
    parser.add_argument("--nonzeros", type=float, default=1e8, help="of the part `jobs`")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - {*PARTS, *LONG}:
        parser.error(f"no part {', '.join(sorted(unknown))}: choose {known}")
    for part in arguments.parts or PARTS:
        options = {name: getattr(arguments, name) for name in OPTIONS.get(part, ())}
        with tempfile.TemporaryDirectory() as folder:
            module = importlib.import_module(f"jobs.bench.{part}")
            section: Section = module.run(Path(folder), arguments.threads, **options)
        section.write(arguments.out)
        console.print(section.table())


if __name__ == "__main__":
    main()
