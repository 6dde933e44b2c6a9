"""The notebooks run, on the embedded model, and are committed with what their cells show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.fixtures.notebooks import NOTEBOOKS, execute, kinds_of, read_notebook
from tests.test_demo import demo

__all__ = ["demo"]

NAMES = ("quick_start", "language_model_features", "known_answers", "prompts", "digits", "own_data")
MACHINE = ("/root", "/home", "/tmp", "/work", "Traceback")


def test_there_are_no_others() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_they_are_committed_with_their_outputs_and_nothing_of_a_machine(name: str) -> None:
    notebook = read_notebook(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum(map(bool, kinds_of(notebook))) >= len(code) / 2
    text = re.sub(r'base64,[^"]*"|"image/png": "[^"]*"', "", json.dumps(notebook))
    assert not [word for word in MACHINE if word in text]
    assert (NOTEBOOKS / f"{name}.ipynb").stat().st_size < 1_500_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quick_start", "language_model_features"])
def test_those_of_the_demo_run(demo, name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "demo").symlink_to(demo[1].layout.root)
    assert kinds_of(execute(name, tmp_path)) == kinds_of(read_notebook(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prompts", "digits", "own_data"])
def test_those_that_make_a_store_run(name: str, tmp_path: Path) -> None:
    assert kinds_of(execute(name, tmp_path)) == kinds_of(read_notebook(name))
