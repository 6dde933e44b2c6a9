"""The installation without extras: which commands work with it, and what the others say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jobs.command.exits import EXTRAS
from jobs.lake.extract import extract
from jobs.lake.tokenize import tokenize
from schemas.run.file import parse_run_file
from tests.fixtures.digits import store_of
from tests.fixtures.runs import extracted, run_file
from tests.test_layers import modules

ROOT = Path(__file__).parents[1]

ALONE = """
import shlex, sys, traceback
import jobs.cli

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in PACKAGES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for line in sys.stdin:
    try:
        jobs.cli.main(shlex.split(line))
    except SystemExit as stop:
        print("END", stop.code, line.strip(), flush=True)
"""
"""Runs the commands of its standard input as they run where no extra is installed."""

LOOKS = """
status store
stats store
examples store
profile store
rank store
coactivation store
coactivation store --no-decoder --workers 2
cluster store
match store mid other
diff store store --site mid
verify store
compact store
top store 3 --strip --site mid
top store 3 --where party=Whig --html top.html --site mid
find store " w3" --site mid
find store --text w3 --site mid
find store --where "n_active > 3" --site mid
feature store 3 --site mid
neighbours store 3 --figure neighbours.png --site mid
heatmap store --features 1,2,3 --out heatmap.png --site mid
plots store
report store
export neuronpedia store --out neuronpedia
export circuit-tracer store --site mid --out circuit-tracer --layer 1
export delphi store --site mid --out delphi
export anndata store --out anndata
gc store
drop store --table rankings --yes
"""
NEED = {
    "logits store": "run",
    "fidelity store --site mid": "run",
    "elicit store w1 --site mid": "run",
    "attribute store --site mid": "run",
    "check-sae sae-topk --model tests.kit:tiny_lm": "run",
    "train-digits digits": "run",
    "tokenize run.yaml": "run",
    "run run.yaml": "run",
    "stats store --address localhost:1": "ray",
    "submit run.yaml": "ray",
}


def alone(lines: list[str], folder: Path) -> tuple[dict[str, int], list[str]]:
    """The exit code of each command, and the lines on standard error."""
    code = ALONE.replace("PACKAGES", repr(set(EXTRAS)))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=True,
    )
    ends = re.findall(r"^END (\d+) (.*)$", done.stdout, re.MULTILINE)
    return {line: int(code) for code, line in ends}, done.stderr.splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of two sites, and a run file."""
    folder = tmp_path_factory.mktemp("light")
    sae = str(folder / "sae-topk")
    run = run_file(folder, sites=[{"name": "mid", "sae": sae}, {"name": "other", "sae": sae}])
    extracted(run)
    (folder / "run.yaml").write_text(run.model_dump_json(exclude_defaults=True))
    return folder


def test_commands_without_a_model_are_imported_without_extras(tmp_path: Path) -> None:
    names = dict.fromkeys(re.sub(r" (store|sae).*", "", line) for line in LOOKS.strip().splitlines())
    lines = [
        f"{name} --help" for name in (*names, "importance", "images", "steer", "make-dictionary", "truth")
    ]
    codes, errors = alone(lines, tmp_path)
    assert codes == dict.fromkeys(lines, 0), "\n".join(errors)


@pytest.mark.slow
def test_what_reads_draws_and_reports_runs_without_extras(folder: Path) -> None:
    lines = LOOKS.strip().splitlines()
    codes, errors = alone(lines, folder)
    assert codes == dict.fromkeys(lines, 0), "\n".join(errors)


@pytest.mark.slow
def test_what_needs_an_extra_says_which(folder: Path) -> None:
    codes, errors = alone(list(NEED), folder)
    assert codes == dict.fromkeys(NEED, 2), "\n".join(errors)
    said = [re.search(r'not installed: pip install "latentlake\[(\w+)\]"$', line) for line in errors]
    assert [match and match[1] for match in said] == list(NEED.values()), "\n".join(errors)


@pytest.mark.slow
def test_studies_of_digits_run_without_extras(tmp_path: Path) -> None:
    root = store_of(tmp_path).layout.root
    lines = [f"stats {root}", f"importance {root}", f"images {root}", f"steer {root} --site rho0.1 --set 3=1"]
    codes, errors = alone(lines, tmp_path)
    assert codes == dict.fromkeys(lines, 0), "\n".join(errors)


@pytest.mark.slow
def test_studies_of_a_known_dictionary_run_without_extras(tmp_path: Path) -> None:
    content = {
        "corpus": {
            "kind": "dictionary",
            "dictionary": {"features": 8, "width": 12, "documents": 20, "rows": 10},
        },
        "model": {"loader": "inputs"},
        "sites": [{"name": "exact", "sae": str(tmp_path / "known" / "sae-0")}],
        "store": {"root": str(tmp_path / "store")},
        "extract": {"executor": "in_process", "cpus_per_worker": 1, "check_sae": "off"},
    }
    run = parse_run_file(content, "run.yaml")
    (tmp_path / "run.yaml").write_text(run.model_dump_json(exclude_defaults=True))
    first = ["make-dictionary run.yaml --out known"]
    assert alone(first, tmp_path)[0] == {first[0]: 0}
    tokenize(run)
    extract(run)
    lines = ["stats store", "coactivation store", "truth store --truth known/truth.npz"]
    codes, errors = alone(lines, tmp_path)
    assert codes == dict.fromkeys(lines, 0), "\n".join(errors)


def test_each_package_of_an_extra_has_its_sentence() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    brought = {
        re.split(r"[\[<>=!]", each)[0].replace("-", "_"): extra
        for extra in ("run", "ray", "saelens")
        for each in extras["optional-dependencies"][extra]
        if not each.startswith("latentlake")
    }
    assert brought == EXTRAS


def test_versions_of_libraries_are_read_where_a_model_runs_alone() -> None:
    users = {name for name, path in modules().items() if " environment()" in path.read_text(encoding="utf-8")}
    assert users - {"pipeline.plans.plan", "pipeline.worker", "jobs.evaluation.attribute"} <= {
        "jobs.bench.shards", "jobs.explore.lake", "jobs.report.page"
    }  # fmt: skip
