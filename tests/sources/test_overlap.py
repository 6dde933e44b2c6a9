"""Documents that a store holds are known again, whatever kind of source they come from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.sources import open_source
from pipeline.sources.hub import HubSource
from pipeline.sources.overlap import overlap
from schemas.run_file import Corpus


def files(path: Path, **asked: Any) -> dict[str, Any]:
    return open_source(Corpus.model_validate({"path": str(path), **asked})).describe()


def old(path: Path) -> dict[str, Any]:
    """As a link of version 1 or 2 tells of a source."""
    return {key: value for key, value in files(path).items() if key != "contents"}


def drawn(**asked: Any) -> dict[str, Any]:
    return open_source(Corpus.model_validate({"kind": "synthetic", "documents": 5, **asked})).describe()


def dataset(revision: str = "a", **asked: Any) -> dict[str, Any]:
    corpus = Corpus.model_validate({"path": "org/name", **asked})
    return HubSource(corpus, list, lambda name: revision).describe()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "more").mkdir()
    (tmp_path / "a.txt").write_text("the first")
    (tmp_path / "more/b.txt").write_text("the second one")
    return tmp_path


def test_files_are_known_by_what_they_hold(folder: Path) -> None:
    held = files(folder / "a.txt")
    assert overlap(files(folder / "more"), held) is None
    assert overlap(files(folder), held) == (
        f"1 of the 2 files of corpus.path '{folder}' are",
        "let corpus.path name the new files alone",
    )
    assert overlap(files(folder, text_column="other"), held) is None


def test_files_of_a_link_that_names_no_contents_are_known_by_those_at_its_path(folder: Path) -> None:
    held = old(folder / "a.txt")
    for path in (folder, folder / "*.txt"):
        assert "files of corpus.path" in overlap(files(path), held)[0]  # type: ignore[index]
    assert overlap(files(folder / "more"), held) is None


def test_and_by_their_path_or_size_where_those_are_gone_or_changed(folder: Path) -> None:
    held = old(folder / "a.txt")
    shutil.move(folder / "a.txt", folder / "moved.txt")
    assert "files of the same path or size" in overlap(files(folder / "moved.txt"), held)[0]  # type: ignore[index]
    (folder / "a.txt").write_text("the first, and more")
    what, remedy = overlap(files(folder / "a.txt"), held)  # type: ignore[misc]
    assert "files of the same path or size" in what
    assert "another store.root" in remedy
    assert overlap(files(folder / "more"), held) is None


@pytest.mark.parametrize("change", [{"documents": 9}, {"documents": 2}])
def test_a_synthetic_corpus_repeats_the_documents_of_its_seed(change: dict[str, int]) -> None:
    assert "of seed 3 are" in overlap(drawn(seed=3, **change), drawn(seed=3))[0]  # type: ignore[index]


@pytest.mark.parametrize("change", [{"seed": 1}, {"vocabulary": 9}, {"tokens_per_document": 9}])
def test_another_synthetic_corpus_does_not(change: dict[str, int]) -> None:
    assert overlap(drawn(**change), drawn()) is None


def test_a_dataset_is_known_whatever_its_revision_or_the_limit(folder: Path) -> None:
    what, _ = overlap(dataset("b"), {**dataset(), "limit": 100})  # type: ignore[misc]
    assert what == "documents of the dataset 'org/name' (split train) are"
    for change in ({"config": "en"}, {"split": "test"}, {"path": "org/other"}):
        assert overlap(dataset(**change), dataset()) is None
    assert overlap(drawn(), dataset()) is overlap(files(folder), dataset()) is None
