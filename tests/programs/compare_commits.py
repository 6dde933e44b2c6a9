"""Runs the same small runs with the code of two commits on this machine, and compares what they leave.

    python -m tests.programs.compare_commits OLD NEW [--text]

Compared are the digests of every data object and the counts of every receipt, token shards, every derived
table byte for byte, the schema of the run file without descriptions, and the public names of FeatureStore and
load_sae; with `--text` figures, reports, what `--help` of every command prints, and what queries print.
Receipts hold seconds and hosts, and float bytes differ between processors, so nothing is compared with a
frozen digest. Inputs are those of `tests/programs/fixed`, as they stand in this checkout, for both commits.
Ends with 1 where something differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.programs.fixed.make_inputs import make_inputs

ROOT = Path(__file__).parents[2]
FIXED = Path(__file__).parent / "fixed"

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("run", "texts.yaml"),
    ("match", "texts", "mid", "gated"),
    ("compact", "texts"),
    ("run", "texts-on-ray.yaml"),
    ("run", "gpt2.yaml"),
    ("run", "prompts.yaml"),
    ("make-dictionary", "dictionary.yaml", "--out", "known", "--noise", "0", "--noise", "0.02"),
    ("run", "dictionary.yaml"),
    ("truth", "dictionary", "--truth", "known/truth.npz"),
    ("run", "drawn.yaml"),
    ("train-digits", "digits", "--images", "images.npz", "--features", "24", "--epochs", "0.1"),
    ("run", "images.yaml"),
)
"""What is run, in this order, in a folder of the inputs."""

QUERIES: tuple[tuple[str, ...], ...] = (
    ("top", "texts", "3", "--site", "mid"),
    ("top", "texts", "3", "--site", "mid", "--where", "party=Whig", "--strip"),
    ("feature", "texts", "3", "--site", "mid"),
    ("neighbours", "texts", "3", "--site", "mid"),
    ("rank", "texts", "--site", "mid", "--by", "frequency", "--window", "0:10"),
    ("elicit", "gpt2-store", "w1 w2 w3 w4", "--site", "resid"),
    ("verify", "texts"),
    ("verify", "dictionary"),
)
"""What is asked afterwards, where text is compared."""

VOLATILE = {"attempt", "seconds", "peak_rss_bytes", "environment"}
"""Fields of a receipt that no two runs share; everything else must be equal."""
DURATION = re.compile(r"\d+(\.\d+)? ?(ms|s|min|h)\b|\d[\d,.]*(/s)\b")
"""What a text may say of time, which no two runs share."""


def main() -> None:
    """Compare, print what differs, and end with 1 where something does."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", help="a commit")
    parser.add_argument("new", help="another, or WORKTREE for the files as they stand")
    parser.add_argument("--text", action="store_true", help="compare what is written for people too")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ll", dir="/tmp") as scratch:
        old, new = (
            results(commit, Path(scratch) / name, text=chosen.text)
            for name, commit in (("old", chosen.old), ("new", chosen.new))
        )
    different = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    for name in different:
        where = "differs" if name in old and name in new else f"only in {'old' if name in old else 'new'}"
        print(f"{name}: {where}")
        if where == "differs" and name.startswith(("help of", "answer of", "code")):
            print(f"  old: {old[name]}\n  new: {new[name]}")
    print(
        f"{len(old)} things of {chosen.old} compared with {len(new)} of {chosen.new}: {len(different)} differ"
    )
    raise SystemExit(bool(different))


def results(commit: str, folder: Path, *, text: bool) -> dict[str, Any]:
    """What a commit's code makes of the inputs: name -> digest or value."""
    code, work = folder / "code", folder / "work"
    work.mkdir(parents=True)
    make_inputs(work)
    with checkout(commit, code) as tree:
        runner = Runner(tree, work)
        for command in COMMANDS:
            runner.run(command)
        result: dict[str, Any] = {"code": json.loads(runner.python(str(FIXED / "describe_code.py")))}
        result |= dict(stores(work))
        if text:
            result |= {f"help of {name}": runner.run((*name.split(), "--help")) for name in runner.commands()}
            result |= {f"answer of {' '.join(q)}": DURATION.sub("TIME", runner.run(q)) for q in QUERIES}
            result |= dict(pages(work))
    return result


class checkout:  # noqa: N801 - used as a function
    """The files of a commit in a folder of their own, as a worktree of git that is removed in the end."""

    def __init__(self, commit: str, folder: Path) -> None:
        self._commit, self._folder = commit, folder

    def __enter__(self) -> Path:
        if self._commit == "WORKTREE":
            return ROOT
        self._git("worktree", "add", "--quiet", "--detach", str(self._folder), self._commit)
        return self._folder

    def __exit__(self, *error: object) -> None:
        if self._commit != "WORKTREE":
            self._git("worktree", "remove", "--force", str(self._folder))

    def _git(self, *arguments: str) -> None:
        subprocess.run(["git", "-C", str(ROOT), *arguments], check=True)


class Runner:
    """Runs commands of the code in `tree`, in the folder `work`."""

    def __init__(self, tree: Path, work: Path) -> None:
        self._tree, self._work = tree, work
        scripts = tomllib.loads((tree / "pyproject.toml").read_text())["project"]["scripts"]
        module, _, function = scripts["latentlake"].partition(":")
        self._main = f"import sys; sys.argv[0] = 'latentlake'; from {module} import {function}; {function}()"
        self._environment = os.environ | {
            "PYTHONPATH": os.pathsep.join((str(tree), str(work))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "NO_COLOR": "1",
        }

    def python(self, *arguments: str) -> str:
        """What Python prints; its errors are shown, and raised."""
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=self._work, env=self._environment, capture_output=True, text=True)
        if done.returncode:
            sys.stderr.write(done.stdout + done.stderr)
            raise SystemExit(f"{self._tree.name}: `{' '.join(arguments)}` ended with {done.returncode}")
        return done.stdout

    def run(self, command: tuple[str, ...]) -> str:
        """What a command prints."""
        print(f"{self._tree.parent.name}: latentlake {' '.join(command)}", file=sys.stderr)
        return self.python("-c", self._main, *command)

    def commands(self) -> list[str]:
        """Every command that `--help` lists, groups with their own."""
        names = ["", *self._listed(())]
        return names + [f"export {name}" for name in self._listed(("export",))]

    def _listed(self, group: tuple[str, ...]) -> list[str]:
        return re.findall(r"^│ ([a-z][a-z-]+) ", self.run((*group, "--help")), re.MULTILINE)


def stores(work: Path) -> Iterator[tuple[str, Any]]:
    """Records, token shards, receipts and tables of every store below `work`."""
    for lake in sorted(work.rglob("lake.json")):
        root = lake.parent
        for path in (
            lake,
            root / "vocabulary.parquet",
            *root.glob("corpus/*.json"),
            *root.glob("tokens/*.parquet"),
        ):
            yield _named(path, work), _digest(path)
        for path in root.glob("passes/*/commits/[!.]*.json"):
            receipt = json.loads(path.read_bytes())
            yield _named(path, work), {key: value for key, value in receipt.items() if key not in VOLATILE}
        for path in root.glob("tables/**/*.parquet"):
            yield _named(path, work), _digest(path)


def pages(work: Path) -> Iterator[tuple[str, str]]:
    """Figures, and every file of a report."""
    for lake in sorted(work.rglob("lake.json")):
        for path in (*lake.parent.glob("figures/**/*"), *lake.parent.glob("report/**/*")):
            if path.is_file():
                yield _named(path, work), _digest(path)


def _named(path: Path, work: Path) -> str:
    return str(path.relative_to(work))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
