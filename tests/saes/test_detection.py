"""Which reader reads a path, and what is said when none or several would."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.saes import FORMATS, load_sae, read_metadata, reader_of
from schemas.errors import InputError
from tests.kit import write_sae
from tests.saes.golden.check import DATA


def test_every_format_names_itself_and_what_it_looks_for() -> None:
    for name, module in FORMATS.items():
        assert module == f"pipeline.saes.formats.{name}"
        assert importlib.import_module(module).LOOKS_FOR


def test_an_unknown_folder_lists_what_was_looked_for_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(InputError) as raised:
        read_metadata(str(tmp_path))
    message = str(raised.value)
    for name, module in FORMATS.items():
        assert f"{name}: {importlib.import_module(module).LOOKS_FOR}" in message
    assert message.endswith("it holds model/, notes.txt")


def test_of_a_full_folder_the_first_names_are_reported(tmp_path: Path) -> None:
    for n in range(20):
        (tmp_path / f"{n:02}.txt").write_text("")
    with pytest.raises(InputError, match=r"it holds 00\.txt, .*, 11\.txt and 8 more$"):
        read_metadata(str(tmp_path))


def test_an_empty_folder_and_an_unknown_file_are_reported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it is empty$"):
        read_metadata(str(tmp_path))
    (tmp_path / "sae.bin").write_text("")
    with pytest.raises(InputError, match=r"it is a file named sae\.bin$"):
        read_metadata(str(tmp_path / "sae.bin"))


@pytest.mark.parametrize("spec", ["nowhere", "~/nowhere-at-all", "~nosuchuser/x", "gpt2:x"])
def test_a_path_that_does_not_exist_is_named(spec: str) -> None:
    with pytest.raises(InputError, match=f"SAE {spec} does not exist"):
        load_sae(spec)


def test_an_ambiguous_folder_says_so_and_its_files_paths_tell_them_apart(tmp_path: Path) -> None:
    write_sae(tmp_path)
    weights = {"W_enc": (4, 9), "W_dec": (9, 4), "b_enc": (9,), "b_dec": (4,), "threshold": (9,)}
    np.savez(tmp_path / "params.npz", **{name: np.ones(shape, np.float32) for name, shape in weights.items()})
    with pytest.raises(
        InputError, match=r"could be of several formats \(saelens: .*; gemma_scope: "
    ) as raised:
        load_sae(str(tmp_path))
    assert "give the path of its weights' file" in str(raised.value)
    assert load_sae(str(tmp_path / "sae_weights.safetensors")).d_sae == 64
    assert load_sae(str(tmp_path / "params.npz")).d_sae == 9


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sae(tmp_path / "saes" / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_sae("~/saes/mine").d_sae == 64


@pytest.mark.parametrize("case", ["llama_scope-res", "llama_scope-transcoder"])
def test_a_format_is_found_wherever_its_folder_lies(tmp_path: Path, case: str) -> None:
    shutil.copytree(DATA / case, tmp_path / "x")
    module, path = reader_of(str(tmp_path / "x"))
    assert (module.__name__.rpartition(".")[2], path) == (case.partition("-")[0], tmp_path / "x")
