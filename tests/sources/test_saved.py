"""Datasets that `save_to_disk` wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.sources import Source, open_source
from pipeline.sources.overlap import overlap
from pipeline.sources.text.saved import SavedSource
from schemas.errors import InputError
from schemas.run.file import Corpus
from tests.sources.conformance import ColumnConformance

ROWS = {"text": ["안녕", "b", "c"], "year": [1, None, 3], "other": [0.5, 1.0, 2.0]}


def source(path: Path, **requested: Any) -> Source:
    return open_source(Corpus.model_validate({"path": str(path), **requested}))


class TestSaved(ColumnConformance):
    def make(self, folder, texts, labels, text_column="text", label_columns=None) -> Source:  # type: ignore[no-untyped-def]
        import datasets

        columns = tuple(labels) if label_columns is None else label_columns
        path = folder / "saved"
        datasets.Dataset.from_dict({"text": texts, **labels}).save_to_disk(str(path))
        return source(path, text_column=text_column, label_columns=columns)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    import datasets

    rows = datasets.Dataset.from_dict(ROWS)
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows, "test": rows.select([2, 0])}).save_to_disk(str(tmp_path / "several"))
    return tmp_path


def test_rows_labels_and_splits_are_read_in_order(saved: Path) -> None:
    one = source(saved / "one", label_columns=["year"])
    assert [(d.number, d.text, d.labels) for d in one.documents()] == [
        (0, "안녕", (1,)),
        (1, "b", (None,)),
        (2, "c", (3,)),
    ]
    assert one.label_dtypes() == {"year": "Int64"}
    assert [d.text for d in source(saved / "several", split="test").documents()] == ["c", "안녕"]


def test_another_split_than_that_of_the_one_dataset_is_refused(saved: Path) -> None:
    import datasets

    train = saved / "named"
    datasets.Dataset.from_dict(ROWS, split="train").save_to_disk(str(train))
    assert len(list(source(train, split="train").documents())) == 3
    assert len(list(source(train).documents())) == 3
    with pytest.raises(InputError, match=r"holds the split 'train' only: leave corpus\.split 'test' out"):
        list(source(train, split="test").documents())


def test_the_digest_is_of_the_rows_and_two_splits_are_two(saved: Path) -> None:
    digests = {source(saved / "several", split=split).digest() for split in ("train", "test")}
    assert len(digests) == 2
    again = {source(saved / "several", split=split).digest() for split in ("train", "test")}
    assert again == digests


def test_a_copy_under_another_name_is_known(saved: Path) -> None:
    import shutil

    shutil.copytree(saved / "one", saved / "copy")
    requested, held = source(saved / "copy").describe(), source(saved / "one").describe()
    assert "1 of the 1 files of corpus.path" in overlap(requested, held)[0]  # type: ignore[index]


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ({"split": "validation"}, "has no split 'validation': set corpus.split to test, train"),
        ({"config": "en"}, "has no configurations: leave corpus.config out"),
        ({"text_column": "body"}, "has no column 'body'; it has"),
    ],
)
def test_what_is_not_there_is_one_sentence(saved: Path, requested: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        source(saved / "several", **requested).label_dtypes()


@pytest.mark.parametrize(
    ("place", "folder"),
    [
        ("one/state.json", "one"),
        ("one/data-00000-of-00001.arrow", "one"),
        ("several/test/state.json", "several"),
        (".", "one"),
    ],
)
def test_a_path_that_leads_into_a_saved_folder_or_to_its_parent_names_it(
    saved: Path, place: str, folder: str
) -> None:
    if place == ".":
        shutil.rmtree(saved / "several")
    with pytest.raises(InputError, match=rf"; '{saved / folder}' was written by save_to_disk: give that"):
        source(saved / place)


def test_damage_is_one_sentence(saved: Path) -> None:
    for file in (saved / "one").glob("*.arrow"):
        file.write_bytes(b"no arrow")
    with pytest.raises(InputError, match="cannot be read as a dataset of save_to_disk"):
        list(source(saved / "one").documents())


def test_images_are_read_with_the_names_of_their_classes(tmp_path: Path) -> None:
    import datasets

    pixels = np.arange(2 * 16, dtype=np.uint8).reshape(2, 4, 4)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = datasets.Dataset.from_dict({"image": list(pixels), "label": [1, 0]}, features=features)
    rows.save_to_disk(str(tmp_path / "images"))
    result = source(tmp_path / "images", kind="images", images={"scrambled": False})
    assert result.describe()["classes"] == ["cat", "dog"]
    documents = list(result.documents())
    assert [d.labels for d in documents] == [("dog",), ("cat",)]
    np.testing.assert_array_equal(documents[1].values, pixels[1].reshape(1, -1))


def test_it_is_a_dataset_though_other_files_lie_next_to_it(saved: Path) -> None:
    (saved / "one" / "notes.txt").write_text("no document")
    assert len(list(source(saved / "one").documents())) == 3
    assert json.loads((saved / "one" / "state.json").read_text())


def test_the_first_rows_have_every_column(saved: Path) -> None:
    opened = source(saved / "one")
    assert isinstance(opened, SavedSource)
    assert opened.first_rows(2).to_dict(as_series=False) == {
        name: values[:2] for name, values in ROWS.items()
    }
