"""A dataset that `save_to_disk` of Hugging Face's datasets wrote: a folder, or one with a folder a split."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.sources.fingerprint import contents, fingerprint
from pipeline.sources.text.columns import frame_of_rows
from pipeline.sources.text.hub import RowSource
from pipeline.sources.values import check_columns
from schemas.errors import InputError
from schemas.records import digest_of
from schemas.run.file import Corpus
from schemas.storage_failures import file_of, storage_failure

SPLITS, STATE = "dataset_dict.json", "state.json"
"""What lies in the folder of several splits, and in that of one dataset."""

_ROWS = 16
"""Rows that are read from the memory map at once."""


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote a folder."""
    return path.is_dir() and any((path / name).is_file() for name in (SPLITS, STATE))


def saved_around(files: Iterable[Path]) -> str:
    """For a refusal: which folder of `save_to_disk` the first of some files lies in, or nothing."""
    folders = (folder for file in files for folder in (file.parent.parent, file.parent) if is_saved(folder))
    first = next(folders, None)
    return "" if first is None else f"; {str(first)!r} was written by save_to_disk: give that folder itself"


def saved_folder(corpus: Corpus) -> Path:
    """The folder of one dataset: that of the split, where there are several; InputError where it is none."""
    path = Path(corpus.path).expanduser()
    if corpus.config is not None:
        raise InputError(
            f"corpus.path {corpus.path!r} was written by save_to_disk and has no configurations: leave "
            "corpus.config out"
        )
    if (path / STATE).is_file():
        try:
            stored = json.loads((path / STATE).read_bytes()).get("_split")
        except (OSError, ValueError, AttributeError, RecursionError):
            stored = None  # whoever loads the dataset refuses it
        if "split" in corpus.model_fields_set and stored not in (None, corpus.split):
            raise InputError(
                f"corpus.path {corpus.path!r} holds the split {stored!r} only: leave corpus.split "
                f"{corpus.split!r} out, or give the folder of that one"
            )
        return path
    known = sorted(folder.name for folder in path.iterdir() if (folder / STATE).is_file())
    if corpus.split not in known:
        raise InputError(
            f"corpus.path {corpus.path!r} has no split {corpus.split!r}: set corpus.split to "
            f"{', '.join(known) or 'one that exists'}"
        )
    return path / corpus.split


def load_saved(folder: Path) -> Any:
    """The dataset, its rows on disk; InputError where it cannot be read."""
    import datasets

    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # noqa: BLE001 - whatever the library raises for damaged files
        raise storage_failure(error, file_of(error, folder), "read") or InputError(
            f"corpus.path {str(folder)!r} cannot be read as a dataset of save_to_disk: "
            f"{' '.join(str(error).split())[:300]}"
        ) from None


def files_of_saved(folder: Path) -> list[Path]:
    """The files of one dataset that hold its rows and its types."""
    files = (path for path in folder.iterdir() if path.suffix == ".arrow" or path.name == "dataset_info.json")
    return sorted(path for path in files if not path.name.startswith("cache-"))


class SavedSource(RowSource):
    """The rows of one split, in their order, read as they are wanted."""

    def __init__(self, corpus: Corpus) -> None:
        super().__init__(corpus)
        self._folder = saved_folder(corpus)

    def describe(self) -> dict[str, Any]:
        """The corpus section, how many files and bytes that is, and what each file holds."""
        section = self._corpus.model_dump(mode="json", include={"kind", "path", "text_column", "split"})
        return {
            **section,
            "label_columns": list(self._corpus.label_columns),
            "files": len(self._prints),
            "bytes": sum(size for _, size, _ in self._prints),
            "contents": contents([(size, sha256) for name, size, sha256 in self._prints if _has_rows(name)]),
        }

    def digest(self) -> str:
        """Names, sizes and sha256 of the first and the last 8 MiB of every file."""
        return digest_of([[*fingerprint] for fingerprint in self._prints])

    def estimated_bytes(self) -> int | None:
        """Of the files with the rows."""
        return sum(size for name, size, _ in self._prints if _has_rows(name))

    @cached_property
    def _prints(self) -> list[tuple[str, int, str]]:
        return [(path.name, *fingerprint(path)) for path in files_of_saved(self._folder)]

    def first_rows(self, n: int) -> pl.DataFrame:
        """See RowSource; the rows that are read have only the corpus' columns."""
        dataset = load_saved(self._folder)
        return frame_of_rows(dataset.with_format(None).select(range(min(n, len(dataset)))).to_list())

    def _rows(self) -> Iterator[dict[str, Any]]:
        dataset = load_saved(self._folder)
        columns = [self._corpus.text_column, *self._corpus.label_columns]
        check_columns(columns, dataset.column_names, self._corpus.path)
        dataset = dataset.select_columns(list(dict.fromkeys(columns))).with_format(None)
        for batch in dataset.iter(_ROWS):
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))


def _has_rows(name: str) -> bool:
    return name.endswith(".arrow")
