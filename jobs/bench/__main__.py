"""`python -m jobs.bench [PART ...]`: measure, print, and write tables into a folder."""

from __future__ import annotations

import argparse
import importlib
import tempfile
from pathlib import Path

from jobs.bench.report import Section
from jobs.console import console

PARTS = ("extraction", "encode", "peers", "memory")
LONG = ("shards", "scale")
"""Parts that run only when they are named."""


def main() -> None:
    """Run the parts asked for, else all."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench", description=__doc__)
    known = f"of {', '.join(PARTS)} (default: all), {', '.join(LONG)}"
    parser.add_argument("parts", nargs="*", metavar="PART", help=known)
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shards", type=int, default=20_000, help="of the part `shards`")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - {*PARTS, *LONG}:
        parser.error(f"no part {', '.join(sorted(unknown))}: choose {known}")
    for part in arguments.parts or PARTS:
        options = {"shards": arguments.shards} if part == "shards" else {}
        with tempfile.TemporaryDirectory() as folder:
            module = importlib.import_module(f"jobs.bench.{part}")
            section: Section = module.run(Path(folder), arguments.threads, **options)
        section.write(arguments.out)
        console.print(section.table())


if __name__ == "__main__":
    main()
