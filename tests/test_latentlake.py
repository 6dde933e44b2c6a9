"""`import latentlake`: its names, what it loads, a folder that hides its packages, and the built wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import latentlake
from jobs.lake.run import run
from jobs.notebook.lake import Lake
from pipeline.saes import load_sae
from pipeline.store import FeatureStore
from schemas import __version__
from schemas.errors import InputError
from schemas.run.file import load_run_file
from tests.fixtures.store import build

ROOT = Path(__file__).parents[1]


def python(*arguments: str, folder: Path, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Python in a folder, with latentlake found in `path`."""
    environment = os.environ | {"PYTHONPATH": str(path)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_its_names_are_those_of_the_packages() -> None:
    ours = {
        "FeatureStore": FeatureStore,
        "Lake": Lake,
        "load_sae": load_sae,
        "load_run_file": load_run_file,
        "run": run,
    }
    assert {name: getattr(latentlake, name) for name in ours} == ours
    assert latentlake.__version__ == __version__
    assert set(latentlake.__all__) == {*ours, "open", "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'opens'"):
        latentlake.opens  # noqa: B018


def test_open_opens_a_store(tmp_path: Path) -> None:
    build(tmp_path / "store", shards=1)
    assert latentlake.open(str(tmp_path / "store")).sites == FeatureStore.open(tmp_path / "store").sites
    with pytest.raises(InputError, match="is not a store"):
        latentlake.open(str(tmp_path))


def test_nothing_is_loaded_before_it_is_used(tmp_path: Path) -> None:
    code = """
import sys
before = set(sys.modules)
import latentlake
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names)))
"""
    assert python("-c", code, folder=tmp_path).stdout == "['latentlake']\n"


@pytest.mark.parametrize("name", ["schemas", "pipeline", "jobs"])
def test_a_package_of_the_same_name_that_comes_first_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise SystemExit(7)")
    done = python("-c", "import latentlake; latentlake.open('x')", folder=tmp_path)
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: latentlake needs its own package {name!r}, and Python finds "
        f"{tmp_path / name / '__init__.py'}: start it in another folder, take that one off PYTHONPATH, or "
        "rename it"
    )
    done = python("-m", "latentlake", "--help", folder=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"Python finds {tmp_path / name / '__init__.py'}" in done.stderr


def test_a_folder_without_python_files_hides_nothing(tmp_path: Path) -> None:
    for name in ("schemas", "pipeline", "jobs"):
        (tmp_path / name).mkdir()
    done = python("-m", "latentlake", "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The feature lake for sparse autoencoders" in done.stdout


@pytest.mark.slow
def test_the_wheel_holds_everything_and_works_from_a_folder_with_packages_of_these_names(
    tmp_path: Path,
) -> None:
    source, git = tmp_path / "source", ["git", "-C", str(ROOT)]
    subprocess.run([*git, "checkout-index", "--all", f"--prefix={source}/"], check=True)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*wheel, "--wheel-dir", str(tmp_path), str(source)], check=True, capture_output=True)
    (built,) = tmp_path.glob("latentlake-*.whl")
    installed, folder = tmp_path / "installed", tmp_path / "folder"
    with zipfile.ZipFile(built) as archive:
        archive.extractall(installed)
    ours = ("latentlake.py", "schemas/", "pipeline/", "jobs/")
    files = (path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    assert [name for name in files if name.startswith(ours) and not (installed / name).is_file()] == []
    entry = next(installed.glob("*.dist-info/entry_points.txt")).read_text()
    assert "latentlake = latentlake:main" in entry
    for name in ("schemas", "pipeline", "jobs"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise SystemExit(7)")
    script = folder / "bin" / "latentlake"  # as pip writes it: not the working folder comes first, but bin
    script.parent.mkdir()
    script.write_text("import sys\nfrom latentlake import main\nsys.exit(main())\n")
    build(folder / "store", shards=1)
    done = python(str(script), "status", "store", folder=folder, path=installed)
    assert done.returncode == 0, done.stderr
    assert "store: " in done.stdout
