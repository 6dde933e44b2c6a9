"""Text corpora: files of many formats, a folder or glob of them, or a Hugging Face dataset."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.sources.fingerprint import contents, fingerprint
from pipeline.sources.text.hub import HubSource
from pipeline.sources.text.readers import FORMATS, Reader, format_of
from pipeline.sources.text.saved import SavedSource, is_saved, saved_around
from pipeline.sources.values import check_label, check_text
from schemas.errors import InputError
from schemas.records import digest_of
from schemas.run.file import Corpus
from schemas.values import Document

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def open_text(corpus: Corpus) -> FilesSource | SavedSource | HubSource:
    """Files where `corpus.path` is a file, a folder or a glob; else the Hugging Face dataset of that name.

    A folder that `save_to_disk` wrote is one dataset.
    """
    path = Path(corpus.path).expanduser()
    if is_saved(path):
        return SavedSource(corpus)
    if path.exists():
        return FilesSource(corpus, *_files_at(path))
    if glob.has_magic(corpus.path):
        return FilesSource(corpus, *_files_like(str(path)))
    if _HUB_NAME.fullmatch(corpus.path) and format_of(path) is None:
        return HubSource(corpus)
    raise InputError(f"corpus.path {corpus.path!r} does not exist")


def contents_at(path: str, size: int) -> list[str]:
    """What files at a path hold (`contents` of `describe`); none where they are gone or of another size."""
    place = Path(path).expanduser()
    if is_saved(place):
        return []
    try:
        _, files = _files_at(place) if place.exists() else _files_like(str(place))
    except InputError:
        return []
    fingerprints = [fingerprint(file) for file in files]
    return contents(fingerprints) if sum(length for length, _ in fingerprints) == size else []


def _files_at(path: Path) -> tuple[Path, list[Path]]:
    """The file, or the files below the folder that we know how to read; and the folder they lie in."""
    if path.is_file():
        return path.parent, [path]

    def fail(error: OSError) -> None:  # a folder that may not be listed may hold documents
        raise InputError(
            f"corpus.path: {error.filename} cannot be listed ({error.strerror}): grant permission"
        )

    files = [Path(parent) / name for parent, _, names in os.walk(path, onerror=fail) for name in names]
    below = [
        p
        for p in files
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(path).parts)
    ]
    known = [p for p in below if format_of(p) is not None]
    # a table next to the documents describes them more often than it holds some
    known = [p for p in known if format_of(p) != ".csv"] or known
    if not known:
        contents, formats = f"{len(below)} other files" if below else "nothing", ", ".join(FORMATS)
        remedy = saved_around(below)
        raise InputError(f"corpus.path {str(path)!r} holds {contents}, but no file of {formats}{remedy}")
    return path, sorted(known, key=lambda p: p.relative_to(path).as_posix())


def _files_like(pattern: str) -> tuple[Path, list[Path]]:
    """The files that a glob finds; and the folder where the pattern starts."""
    # Path.glob takes no absolute pattern.
    files = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file())  # noqa: PTH207
    if not files:
        raise InputError(f"corpus.path {pattern!r} matches no file")
    fixed = Path(pattern[: re.search(r"[*?\[]", pattern).start()])  # type: ignore[union-attr]
    return fixed if fixed.is_dir() else fixed.parent, files


class FilesSource:
    """Files in the order of their names below `base`, and their documents in the order of each file."""

    def __init__(self, corpus: Corpus, base: Path, files: list[Path]) -> None:
        self._corpus, self._base, self._files = corpus, base, files
        self._readers = list[Reader]()
        for path in files:
            name = format_of(path)
            if name is None:
                formats = ", ".join(FORMATS)
                raise InputError(f"{path} is in none of the known formats {formats}{saved_around([path])}")
            self._readers.append(FORMATS[name](path, corpus.text_column, corpus.label_columns))

    def describe(self) -> dict[str, Any]:
        """The corpus section, how many files and bytes that is, and what each file with content holds."""
        return {
            "kind": self._corpus.kind,
            "path": self._corpus.path,
            "text_column": self._corpus.text_column,
            "label_columns": list(self._corpus.label_columns),
            "files": len(self._files),
            "bytes": sum(path.stat().st_size for path in self._files),
            "contents": contents(self._fingerprints),
        }

    def digest(self) -> str:
        """Names below the base, sizes, and sha256 of the first and the last 8 MiB of every file."""
        named = zip(self._files, self._fingerprints, strict=True)
        return digest_of(
            [[path.relative_to(self._base).as_posix(), *fingerprint] for path, fingerprint in named]
        )

    @cached_property
    def _fingerprints(self) -> list[tuple[int, str]]:
        return [fingerprint(path) for path in self._files]

    def label_dtypes(self) -> dict[str, str]:
        """Types declared by Parquet files, or of the first values in JSON lines; all files must agree."""
        dtypes: dict[str, str] = {}
        for path, reader in zip(self._files, self._readers, strict=True):
            for column, dtype in reader.label_dtypes().items():
                if dtypes.setdefault(column, dtype) != dtype:
                    raise InputError(
                        f"{path}: label column {column!r} is {dtype}, but {dtypes[column]} in an "
                        "earlier file; use one type in all files"
                    )
        return {column: dtypes.get(column, "String") for column in self._corpus.label_columns}

    def inputs(self) -> None:
        """There are no vectors."""

    def estimated_bytes(self) -> int | None:
        """Sum over the files."""
        return sum(reader.text_bytes() for reader in self._readers)

    def first_rows(self, n: int) -> pl.DataFrame:
        """The first `n` documents, or fewer, with every column of the first file that has columns."""
        frames = (reader.first_rows(n) for reader in self._readers)
        return next((frame for frame in frames if frame.width), pl.DataFrame())

    def documents(self) -> Iterator[Document]:
        """Documents of all files, numbered from 0 through."""
        dtypes, number = self.label_dtypes(), 0
        for reader in self._readers:
            for place, text, labels in reader.records():
                where = reader.where(place)
                pairs = zip(labels, dtypes.items(), strict=True)
                checked = tuple(check_label(value, dtype, column, where) for value, (column, dtype) in pairs)
                yield Document(number, check_text(text, self._corpus.text_column, where), checked)
                number += 1
