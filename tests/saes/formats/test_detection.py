"""An SAE in tests/data/saes is of one format to all readers, and telling so needs no torch if it can."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.saes import FORMATS, read_metadata
from tests.kit import write_sae
from tests.saes.golden.check import DATA

WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")

FILES = sorted(
    file.relative_to(DATA).as_posix()
    for file in DATA.rglob("*")
    if file.suffix in WEIGHTS and file.name != "expected.npz"
)


def matching(path: Path) -> list[str]:
    return [name for name, module in FORMATS.items() if importlib.import_module(module).matches(path)]


@pytest.mark.parametrize("file", FILES)
def test_a_weights_file_is_of_one_format(file: str) -> None:
    assert matching(DATA / file) == [file.partition("-")[0]]
    assert read_metadata(str(DATA / file)).format == file.partition("-")[0]


@pytest.mark.parametrize("file", FILES)
def test_a_folder_is_of_one_format(file: str) -> None:
    folder = (DATA / file).parent
    while folder != DATA and not matching(folder):
        folder = folder.parent
    assert matching(folder) == [file.partition("-")[0]]


def test_a_saelens_folder_is_of_that_format_alone(tmp_path: Path) -> None:
    assert matching(write_sae(tmp_path)) == ["saelens"]


def test_folders_without_torch_files_are_recognised_without_torch(tmp_path: Path) -> None:
    folders = [str(write_sae(tmp_path)), str(DATA / "sparsify-topk" / "layers.12")]
    code = (
        "import sys; from pipeline.saes import reader_of\n"
        f"[reader_of(folder) for folder in {folders!r}]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
