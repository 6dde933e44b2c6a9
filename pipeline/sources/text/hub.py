"""A dataset of the Hugging Face hub, streamed."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import polars as pl

from pipeline.sources.text.columns import frame_of_rows
from pipeline.sources.values import check_columns, check_label, check_text, infer_dtypes
from schemas.errors import InputError
from schemas.records import digest_of
from schemas.run.file import Corpus
from schemas.values import Document


class RowSource(ABC):
    """Rows of a dataset that are dictionaries, as documents."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    @abstractmethod
    def _rows(self) -> Iterator[dict[str, Any]]:
        """The rows, in their order."""

    def label_dtypes(self) -> dict[str, str]:
        """Types of the first values that are not null; String where there is none."""
        columns, where = self._corpus.label_columns, self._corpus.path
        for row in islice(self._rows(), 1):
            check_columns((self._corpus.text_column, *columns), row, where)
        labels = ([row.get(column) for column in columns] for row in self._rows())
        dtypes = infer_dtypes(labels, columns, where)
        return {column: dtypes.get(column, "String") for column in columns}

    def first_rows(self, n: int) -> pl.DataFrame:
        """The first `n` documents, or fewer, with every column."""
        return frame_of_rows(list(islice(self._rows(), n)))

    def inputs(self) -> None:  # noqa: B027 - none of them has vectors
        """There are no vectors."""

    def documents(self) -> Iterator[Document]:
        """Rows of the split, in its order."""
        dtypes = self.label_dtypes()
        for number, row in enumerate(self._rows()):
            where = f"{self._corpus.path} row {number}"
            labels = tuple(
                check_label(row.get(column), dtype, column, where) for column, dtype in dtypes.items()
            )
            text = check_text(row.get(self._corpus.text_column), self._corpus.text_column, where)
            yield Document(number, text, labels)


class HubSource(RowSource):
    """One split of a dataset, pinned to the revision that the hub names when it is opened."""

    def __init__(
        self,
        corpus: Corpus,
        load: Callable[..., Any] | None = None,
        revision: Callable[[str], str] | None = None,
    ) -> None:
        """`load` and `revision` stand in for `datasets.load_dataset` and the hub's answer."""
        super().__init__(corpus)
        self._load = load or load_dataset
        self._revision = self._call_hub(revision or revision_of, corpus.path)

    def describe(self) -> dict[str, Any]:
        """The corpus section, and the revision."""
        keys = {"kind", "path", "text_column", "split", "config"}
        return {
            **self._corpus.model_dump(mode="json", include=keys),
            "label_columns": list(self._corpus.label_columns),
            "revision": self._revision,
        }

    def digest(self) -> str:
        """Name, configuration, split and revision."""
        return digest_of([self._corpus.path, self._corpus.config, self._corpus.split, self._revision])

    def estimated_bytes(self) -> int | None:
        """Unknown: the hub does not publish it for every dataset."""
        return None

    def _rows(self) -> Iterator[dict[str, Any]]:
        options = {"name": self._corpus.config, "split": self._corpus.split, "revision": self._revision}
        rows = self._call_hub(self._load, self._corpus.path, streaming=True, **options)
        try:
            yield from rows
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"corpus.path {self._corpus.path!r} ended early: {reason}; run again") from error
        finally:
            # A half-read Parquet stream still alive at exit aborts Python (huggingface/datasets#7467).
            del rows
            gc.collect()

    def _call_hub(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        refusal = (
            f"corpus.path {self._corpus.path!r} is not a local path, and no Hugging Face dataset could be "
            f"opened by that name (config {self._corpus.config}, split {self._corpus.split})"
        )
        return call_hub(refusal, call, *args, **kwargs)


def call_hub(refusal: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What the hub gives; its error is an InputError that begins with `refusal`."""
    try:
        return call(*args, **kwargs)
    except Exception as error:  # whatever the network and two libraries raise
        if isinstance(error, ModuleNotFoundError) and error.name in ("datasets", "huggingface_hub"):
            raise  # they belong to an extra of latentlake
        raise InputError(f"{refusal}: {' '.join(str(error).split())[:300]}") from None


def load_dataset(*args: Any, **kwargs: Any) -> Any:
    """`datasets.load_dataset`, imported when it is needed."""
    import datasets

    return datasets.load_dataset(*args, **kwargs)


def revision_of(name: str) -> str:
    """The commit that the hub has now."""
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(name).sha)
