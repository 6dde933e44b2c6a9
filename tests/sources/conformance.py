"""What every source must do. Inherit SourceConformance and say how a corpus of given documents is made, or
StreamConformance where documents cannot be given.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pipeline.sources import Source
from schemas.errors import InputError
from schemas.values import Document

TEXTS = ["one\nline", "", "zwei Wörter", "셋", "four <bos> words"]
LABELS: dict[str, list[Any]] = {
    "party": ["a", None, "b", "a", "ü"],
    "year": [1900, 1901, None, 1902, -5],
    "share": [0.5, 1.0, 2.25, None, -1.0],
    "won": [True, False, None, True, False],
}
DTYPES = {"party": "String", "year": "Int64", "share": "Float64", "won": "Boolean"}


class StreamConformance:
    """Tests of any source; `make_one` opens a corpus that is the same for the same number."""

    kind = "text"

    @abstractmethod
    def make_one(self, folder: Path, number: int) -> Source:
        """Open a corpus below the folder, another one for another number."""

    def test_documents_are_texts_numbered_from_0(self, tmp_path: Path) -> None:
        result = list(self.make_one(tmp_path, 0).documents())
        assert [document.number for document in result] == list(range(len(result)))
        assert len(result) > 1
        assert all(isinstance(document.text, str) for document in result)

    def test_every_document_has_a_value_of_each_label(self, tmp_path: Path) -> None:
        source = self.make_one(tmp_path, 0)
        assert {len(d.labels) for d in source.documents()} == {len(source.label_dtypes())}

    def test_it_can_be_read_again_even_after_a_reading_that_stopped_half_way(self, tmp_path: Path) -> None:
        source = self.make_one(tmp_path, 0)
        half = source.documents()
        assert next(half).number == 0
        half.close()  # type: ignore[attr-defined]
        assert list(source.documents()) == list(source.documents())

    def test_the_digest_is_of_the_content(self, tmp_path: Path) -> None:
        first, same = self.make_one(tmp_path / "a", 0), self.make_one(tmp_path / "b", 0)
        assert first.digest() == same.digest() != self.make_one(tmp_path / "c", 1).digest()
        assert list(first.documents()) == list(same.documents())

    def test_it_describes_itself_as_json(self, tmp_path: Path) -> None:
        source = self.make_one(tmp_path, 0)
        result = source.describe()
        assert json.loads(json.dumps(result)) == result
        assert (result["kind"], result["label_columns"]) == (self.kind, list(source.label_dtypes()))

    def test_a_document_has_a_vector_for_each_token_where_the_source_holds_vectors(
        self, tmp_path: Path
    ) -> None:
        source = self.make_one(tmp_path, 0)
        inputs, documents = source.inputs(), list(source.documents())
        if inputs is None:
            assert all(document.values is None for document in documents)
            return
        assert inputs.width == math.prod(inputs.shape)
        for document, again in zip(documents, source.documents(), strict=True):
            assert document.values is not None
            assert document.values.dtype == inputs.dtype
            assert document.values.shape == (len(document.text.split()), inputs.width)
            np.testing.assert_array_equal(document.values, again.values)

    def test_its_size_is_about_the_bytes_of_its_texts(self, tmp_path: Path) -> None:
        source = self.make_one(tmp_path, 0)
        estimate = source.estimated_bytes()
        size = sum(len(document.text.encode()) for document in source.documents())
        assert estimate is None or size / 4 <= estimate <= 4 * size + 4096


class SourceConformance(StreamConformance):
    """Tests of a source of given documents; `make` writes a corpus below a folder and opens it."""

    labels: ClassVar[dict[str, list[Any]]] = LABELS
    text_column = "text"

    @abstractmethod
    def make(
        self,
        folder: Path,
        texts: list[str],
        labels: dict[str, list[Any]],
        text_column: str = "text",
        label_columns: tuple[str, ...] | None = None,
    ) -> Source:
        """Open a corpus of these documents; `label_columns` are asked for (default: all)."""

    def make_one(self, folder: Path, number: int) -> Source:
        """`TEXTS`, or with another end."""
        return self.make(folder, [*TEXTS[:-1], "another"] if number else TEXTS, self.labels)

    def test_documents_come_in_order_numbered_from_0_with_their_labels(self, tmp_path: Path) -> None:
        result = list(self.make(tmp_path, TEXTS, self.labels).documents())
        columns = list(zip(*self.labels.values(), strict=True)) if self.labels else [()] * len(TEXTS)
        assert result == [
            Document(number, text, labels)
            for number, (text, labels) in enumerate(zip(TEXTS, columns, strict=True))
        ]

    def test_label_types_are_reported(self, tmp_path: Path) -> None:
        result = self.make(tmp_path, TEXTS, self.labels).label_dtypes()
        assert result == {name: DTYPES[name] for name in self.labels}
        assert list(result) == list(self.labels)

    def test_a_label_column_that_is_not_there_is_named_next_to_those_that_are(self, tmp_path: Path) -> None:
        source = self.make(tmp_path, TEXTS, self.labels, label_columns=("yaer",))
        with pytest.raises(InputError, match=r"no column 'yaer'; it has "):
            source.label_dtypes()


class ColumnConformance(SourceConformance):
    """For sources whose documents are rows with a text column."""

    def test_a_text_column_that_is_not_there_is_named_next_to_those_that_are(self, tmp_path: Path) -> None:
        source = self.make(tmp_path, TEXTS, self.labels, text_column="body")
        with pytest.raises(InputError, match=r"no column 'body'; it has .*text.*year"):
            list(source.documents())

    def test_a_null_text_is_refused(self, tmp_path: Path) -> None:
        source = self.make(tmp_path, ["a", None], {})  # type: ignore[list-item]
        with pytest.raises(InputError, match="'text' is null, not text"):
            list(source.documents())

    def test_a_column_of_nulls_is_a_string_column(self, tmp_path: Path) -> None:
        source = self.make(tmp_path, ["a", "b"], {"party": [None, None]})
        assert source.label_dtypes() == {"party": "String"}
        assert [document.labels for document in source.documents()] == [(None,), (None,)]

    def test_text_may_be_a_label_too(self, tmp_path: Path) -> None:
        source = self.make(tmp_path, ["a"], {}, label_columns=("text",))
        assert list(source.documents()) == [Document(0, "a", ("a",))]


class UntypedConformance(ColumnConformance):
    """For sources that declare no types: the first value of a label that is not null sets the column's."""

    def test_a_value_of_another_type_is_refused_with_its_place(self, tmp_path: Path) -> None:
        source = self.make(tmp_path, ["a", "b", "c"], {"year": [None, 1900, "1901"]})
        with pytest.raises(
            InputError, match=r"(:3|row 2): label 'year' is '1901' \(String\), but the column is Int64"
        ):
            list(source.documents())

    def test_true_is_no_number(self, tmp_path: Path) -> None:
        source = self.make(tmp_path, ["a", "b"], {"year": [1, True]})
        with pytest.raises(InputError, match=r"label 'year' is True \(Boolean\)"):
            list(source.documents())

    def test_a_whole_number_in_a_column_of_floats_is_a_float(self, tmp_path: Path) -> None:
        source = self.make(tmp_path, ["a", "b"], {"share": [0.5, 2]})
        values = [document.labels[0] for document in source.documents()]
        assert (values, type(values[1])) == ([0.5, 2.0], float)

    def test_a_whole_number_beyond_64_bits_is_refused(self, tmp_path: Path) -> None:
        source = self.make(tmp_path, ["a"], {"year": [2**63]})
        with pytest.raises(InputError, match="beyond 64 bits"):
            list(source.documents())

    def test_a_list_is_no_label(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"label 'year' is \[1\] \(list\)"):
            self.make(tmp_path, ["a"], {"year": [[1]]}).label_dtypes()

    @pytest.mark.parametrize("where", ["text", "party"])
    def test_half_a_surrogate_pair_is_refused(self, tmp_path: Path, where: str) -> None:
        text, label = ("a\ud800", "b") if where == "text" else ("a", "\ud800")
        source = self.make(tmp_path, [text], {"party": [label]})
        with pytest.raises(InputError, match=f"'{where}' holds a lone surrogate"):
            list(source.documents())
