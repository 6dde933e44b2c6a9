"""Documents that a store holds are known again, whatever kind of source they come from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.sources import open_source
from pipeline.sources.images.hub import HubImages
from pipeline.sources.overlap import overlap
from pipeline.sources.text.hub import HubSource
from schemas.run.file import Corpus


def files(path: Path, **requested: Any) -> dict[str, Any]:
    return open_source(Corpus.model_validate({"path": str(path), **requested})).describe()


def old(path: Path) -> dict[str, Any]:
    """As a link of version 1 or 2 tells of a source."""
    return {key: value for key, value in files(path).items() if key != "contents"}


def drawn(**requested: Any) -> dict[str, Any]:
    return open_source(Corpus.model_validate({"kind": "synthetic", "documents": 5, **requested})).describe()


def dataset(revision: str = "a", **requested: Any) -> dict[str, Any]:
    corpus = Corpus.model_validate({"path": "org/name", **requested})
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
        "let corpus.path name only the new files",
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


def digits(path: Path, **settings: Any) -> dict[str, Any]:
    corpus = {"kind": "images", "path": str(path), "images": settings}
    return open_source(Corpus.model_validate(corpus)).describe()


def write_digits(path: Path, seed: int = 0, n: int = 6) -> Path:
    """Two arrays of images, of which `image` begins alike for every n."""
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 9, 4, 4), np.uint8)[:, :n]
    np.savez(path, image=pixels[0], x_test=pixels[1], label=np.arange(n) % 3)
    return path


@pytest.mark.parametrize("change", [{}, {"scrambled": True}, {"block": 2}, {"seed": 1}])
def test_images_are_known_however_they_are_scrambled(tmp_path: Path, change: dict[str, Any]) -> None:
    held = digits(write_digits(tmp_path / "a.npz"))
    shutil.copy(tmp_path / "a.npz", tmp_path / "copy.npz")
    for name in ("a.npz", "copy.npz"):
        result = overlap(digits(tmp_path / name, **change), {**held, "limit": 3})
        assert result is not None
        assert result[0] == f"images of corpus.path '{tmp_path / name}' are"
    assert overlap(digits(write_digits(tmp_path / "b.npz", 1), **change), held) is None
    assert overlap(digits(tmp_path / "a.npz", image="x_test", **change), held) is None


def test_images_at_the_path_of_others_are_taken_for_a_longer_file_of_theirs(tmp_path: Path) -> None:
    held = digits(write_digits(tmp_path / "a.npz"))
    assert overlap(digits(write_digits(tmp_path / "a.npz", n=9)), held)


def test_images_of_one_file_are_known_whatever_file_their_classes_come_from(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 4, 4), np.uint8))
    for name in ("y.npy", "z.npy"):
        np.save(tmp_path / name, np.arange(4) % (2 if name == "y.npy" else 3))
    held = digits(tmp_path / "x.npy", labels=str(tmp_path / "y.npy"))
    shutil.copy(tmp_path / "x.npy", tmp_path / "copy.npy")
    assert overlap(digits(tmp_path / "copy.npy", labels=str(tmp_path / "z.npy")), held)


def test_a_dataset_of_images_is_known_by_its_name(tmp_path: Path) -> None:
    class Rows(dict[str, Any]):
        features = {"image": None, "other": None, "label": None}  # noqa: RUF012

    def load(*args: Any, **kwargs: Any) -> Rows:
        pixels = list(np.zeros((2, 4, 4), np.uint8))
        return Rows(image=pixels, other=pixels, label=[0, 1])

    def pets(**requested: Any) -> dict[str, Any]:
        corpus = Corpus.model_validate({"kind": "images", "path": "org/pets", **requested})
        return HubImages(corpus, load, lambda name: str(requested)).describe()

    assert overlap(pets(images={"scrambled": True}), pets())
    for other in ({"split": "test"}, {"config": "en"}, {"path": "org/more"}, {"images": {"image": "other"}}):
        assert overlap(pets(**other), pets()) is None


def vectors(**recipe: Any) -> dict[str, Any]:
    requested = {"kind": "dictionary", "dictionary": {"features": 4, "width": 4, "documents": 3, **recipe}}
    return open_source(Corpus.model_validate(requested)).describe()


def test_a_dictionary_repeats_the_documents_of_its_recipe() -> None:
    for documents in (2, 3, 9):
        result = overlap(vectors(documents=documents), vectors())
        assert result is not None
        assert result[1] == "set another corpus.dictionary.seed"
    for change in ({"seed": 1}, {"features": 5}, {"rows": 2}, {"noise": 0.5}):
        assert overlap(vectors(**change), vectors()) is None


def prompts(path: Any, **requested: Any) -> dict[str, Any]:
    corpus = {"kind": "prompts", "path": str(path), "prompts": requested}
    return open_source(Corpus.model_validate(corpus)).describe()


def test_prompts_of_files_are_known_by_what_these_hold(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"set/{name}.jsonl").write_text(f'{{"text": "{name}", "answer": "x", "other": "y"}}\n')
    held = prompts(tmp_path / "set/a.jsonl")
    what = f"1 of the 2 files of corpus.path '{tmp_path / 'set'}' are"
    assert overlap(prompts(tmp_path / "set"), held) == (what, "let corpus.path name only the new files")
    assert overlap(prompts(tmp_path / "set/a.jsonl", limit=1), held)
    assert overlap(files(tmp_path / "set/a.jsonl"), held)
    assert overlap(prompts(tmp_path / "set/b.jsonl"), held) is None


def test_a_set_of_prompts_is_known_by_its_name() -> None:
    held = prompts("templates:english")
    assert overlap(prompts("templates:english", limit=5), held)
    assert overlap(prompts("templates:korean"), held) is None
