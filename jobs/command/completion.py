"""What a shell completes: run files, folders of stores, and the names of a store's sites.

Nothing that is slow is looked at: of a store its record and the plans of its passes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

MOST = 1_000
"""Entries of a folder that are looked at."""


def complete_store(incomplete: str) -> list[str]:
    """Run files, stores, and folders on the way to them, which end with a slash."""
    folders = (path for path in _entries(incomplete) if path.is_dir())
    names = [str(path) if (path / "lake.json").is_file() else f"{path}/" for path in folders]
    return [*_run_files(incomplete), *names]


def complete_run_file(incomplete: str) -> list[str]:
    """Run files, and folders on the way to them, which end with a slash."""
    folders = (f"{path}/" for path in _entries(incomplete) if path.is_dir())
    return [*_run_files(incomplete), *folders]


def _run_files(incomplete: str) -> list[str]:
    return [str(path) for path in _entries(incomplete) if path.suffix in (".yaml", ".yml") and path.is_file()]


def _entries(incomplete: str) -> list[Path]:
    """What begins so, without what is hidden."""
    folder, _, name = incomplete.rpartition("/")
    parent = Path(folder or ("/" if incomplete.startswith("/") else "."))
    try:
        entries = [path for path, _ in zip(parent.iterdir(), range(MOST), strict=False)]
    except OSError:
        return []
    return sorted(path for path in entries if path.name.startswith(name) and not path.name.startswith("."))


def complete_site(incomplete: str) -> list[str]:
    """Sites of the store that the line names, from the plans of its passes."""
    # where an option's value is still missing, click has not read the arguments: the line itself has them
    line = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")
    names = list[str]()
    for word in line.split():
        names += _sites(word)
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def _sites(store: str) -> list[str]:
    """The sites of a store on disk, given its folder or a run file; none of anything else."""
    try:
        if store.endswith((".yaml", ".yml")):
            from schemas.run.file import load_run_file

            store = load_run_file(Path(store)).store.root
        plans = [json.loads(path.read_bytes()) for path in sorted(Path(store).glob("passes/*/plan.json"))]
        return [str(site["name"]) for plan in plans for site in plan["sites"]]
    except Exception:  # noqa: BLE001 - a shell that completes has no place for a sentence
        return []
