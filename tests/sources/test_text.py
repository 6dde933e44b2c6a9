"""Text sources on files: formats, folders, globs, and what may be wrong with them."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.sources import Source, open_source
from pipeline.sources.text.source import FilesSource
from schemas.errors import InputError
from schemas.run.file import Corpus
from tests.sources.conformance import ColumnConformance, SourceConformance, UntypedConformance


def open_at(path: Path | str, **requested: Any) -> Source:
    return open_source(Corpus.model_validate({"path": str(path), **requested}))


def texts_of(source: Source) -> list[str]:
    return [document.text for document in source.documents()]


def json_lines(texts: list[Any], labels: dict[str, list[Any]]) -> bytes:
    rows = [
        json.dumps({"text": text, **{name: values[i] for name, values in labels.items()}})
        for i, text in enumerate(texts)
    ]
    return "".join(row + "\n" for row in rows).encode()


class TestParquet(ColumnConformance):
    def make(self, folder, texts, labels, text_column="text", label_columns=None) -> Source:  # type: ignore[no-untyped-def]
        folder.mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": texts, **labels}), folder / "corpus.parquet")
        columns = tuple(labels) if label_columns is None else label_columns
        return open_at(folder / "corpus.parquet", text_column=text_column, label_columns=columns)


class TestJsonLines(UntypedConformance):
    def make(self, folder, texts, labels, text_column="text", label_columns=None) -> Source:  # type: ignore[no-untyped-def]
        folder.mkdir(exist_ok=True)
        (folder / "corpus.jsonl").write_bytes(json_lines(texts, labels))
        columns = tuple(labels) if label_columns is None else label_columns
        return open_at(folder / "corpus.jsonl", text_column=text_column, label_columns=columns)


class TestGzippedJsonLines(UntypedConformance):
    def make(self, folder, texts, labels, text_column="text", label_columns=None) -> Source:  # type: ignore[no-untyped-def]
        folder.mkdir(exist_ok=True)
        (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(json_lines(texts, labels), mtime=0))
        columns = tuple(labels) if label_columns is None else label_columns
        return open_at(folder / "corpus.jsonl.gz", text_column=text_column, label_columns=columns)


class TestCsv(ColumnConformance):
    def make(self, folder, texts, labels, text_column="text", label_columns=None) -> Source:  # type: ignore[no-untyped-def]
        folder.mkdir(exist_ok=True)
        pl.DataFrame({"text": texts, **labels}).write_csv(folder / "corpus.csv")
        columns = tuple(labels) if label_columns is None else label_columns
        return open_at(folder / "corpus.csv", text_column=text_column, label_columns=columns)

    def test_a_null_text_is_refused(self, tmp_path: Path) -> None:
        """It cannot be told from an empty one."""
        assert texts_of(self.make(tmp_path, ["a", None, ""], {"n": [1, 2, 3]})) == ["a", "", ""]


class TestTextFiles(SourceConformance):
    labels: ClassVar[dict[str, list[Any]]] = {}

    def make(self, folder, texts, labels, text_column="text", label_columns=()) -> Source:  # type: ignore[no-untyped-def]
        folder.mkdir(exist_ok=True)
        for number, text in enumerate(texts):
            (folder / f"{number}.txt").write_bytes(text.encode())
        return open_at(folder, label_columns=label_columns)


class TestFolderOfSeveralFormats(ColumnConformance):
    def make(self, folder, texts, labels, text_column="text", label_columns=None) -> Source:  # type: ignore[no-untyped-def]
        (folder / "b").mkdir(parents=True)
        cut = len(texts) // 2
        first, second = (
            {name: values[part] for name, values in labels.items()}
            for part in (slice(None, cut), slice(cut, None))
        )
        (folder / "a.jsonl").write_bytes(json_lines(texts[:cut], first))
        pq.write_table(pa.table({"text": texts[cut:], **second}), folder / "b" / "c.parquet")
        columns = tuple(labels) if label_columns is None else label_columns
        return open_at(folder, text_column=text_column, label_columns=columns)


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_folder_is_read_by_name_whatever_else_and_hidden_lies_in_it(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "c.TXT", ".hidden.txt", ".git/x.txt", "README.md"):
        write(tmp_path / name, name)
    assert texts_of(open_at(tmp_path)) == ["a/z.txt", "b.txt", "c.TXT"]


def test_a_glob_is_read_by_name(tmp_path: Path) -> None:
    for name in ("x/2.txt", "x/1.txt", "y/0.txt", "z.txt"):
        write(tmp_path / name, name)
    assert texts_of(open_at(tmp_path / "*" / "*.txt")) == ["x/1.txt", "x/2.txt", "y/0.txt"]
    assert texts_of(open_at(tmp_path / "**" / "*.txt"))[-1] == "z.txt"


def test_a_glob_keeps_its_digest_where_the_folder_moves(tmp_path: Path) -> None:
    for place in ("here", "there"):
        write(tmp_path / place / "x" / "1.txt", "one")
    here, there = (open_at(tmp_path / place / "*" / "*.txt").digest() for place in ("here", "there"))
    assert here == there


def test_a_renamed_or_longer_file_has_another_digest(tmp_path: Path) -> None:
    paths = [write(tmp_path / n / f, t) for n, f, t in [("a", "1", "x"), ("b", "2", "x"), ("c", "1", "xx")]]
    for path in paths:
        path.rename(path.with_suffix(".txt"))
    assert len({open_at(path.parent).digest() for path in paths}) == 3


def test_the_digest_sees_both_ends_of_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.fingerprint._ENDS", 4)
    digests = set()
    for text in ("aaaa....bbbb", "aXaa....bbbb", "aaaa....bXbb", "aaaa....bbb"):
        digests.add(open_at(write(tmp_path / "1.txt", text)).digest())
    assert len(digests) == 4


@pytest.mark.parametrize("name", ["no.parquet", "no/such/folder", "./no", "/no/file.txt"])
def test_a_path_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"corpus.path '{name}' does not exist"):
        open_at(name)


def test_a_glob_that_finds_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\*\.parquet' matches no file"):
        open_at(tmp_path / "*.parquet")


def test_a_folder_without_a_known_file_tells_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds nothing, but no file of \.parquet, \.jsonl"):
        open_at(tmp_path)
    write(tmp_path / "a.md", "x")
    with pytest.raises(InputError, match="holds 1 other files"):
        open_at(tmp_path)


def test_a_file_of_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.md is in none of the known formats \.parquet"):
        open_at(write(tmp_path / "a.md", "x"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": \n', r"a\.jsonl:2 is not JSON"),
        (b'{"text": {"a": 1}, "text": "c"}\n', r"a\.jsonl:1 has the key 'text' twice: keep"),
        (b'{"text": "a"}\n{"text": "b", "text": "c"}\n', r"a\.jsonl:2 has the key 'text' twice: keep"),
        (b'{"text": "a"}\n[1]\n', r"a\.jsonl:2 is not a JSON object but list"),
        (b'{"text": "a"}\n\n{"text": "\xff"}\n', r"a\.jsonl:3 is not UTF-8"),
        (b'{"text": "a"}\n{"text": 5}\n', r"a\.jsonl:2: 'text' is int, not text"),
        (b'{"text": "a"}\n{"other": "b"}\n', r"a\.jsonl:2: 'text' is null, not text"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        texts_of(open_at(write(tmp_path / "a.jsonl", content)))


def test_a_missing_key_of_a_label_is_null(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a", "year": 1}\n{"text": "b"}\n')
    assert [d.labels for d in open_at(path, label_columns=["year"]).documents()] == [(1,), (None,)]


@pytest.mark.parametrize(
    ("values", "dtype", "labels"),
    [
        ('"Whig" NaN', "String", ["Whig", None]),
        ('NaN "Whig"', "String", [None, "Whig"]),
        ("3 NaN -Infinity", "Int64", [3, None, None]),
        ("NaN true", "Boolean", [None, True]),
        ("Infinity 3", "Float64", [float("inf"), 3.0]),
        ("Infinity null", "Float64", [float("inf"), None]),
    ],
)
def test_a_number_that_says_nothing_is_null_in_a_column_of_any_type(
    tmp_path: Path, values: str, dtype: str, labels: list[Any]
) -> None:
    lines = "".join(f'{{"text": "a", "label": {value}}}\n' for value in values.split())
    source = open_at(write(tmp_path / "a.jsonl", lines), label_columns=["label"])
    assert source.label_dtypes() == {"label": dtype}
    assert [document.labels[0] for document in source.documents()] == labels


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n')
    write(tmp_path / "b.txt", b"\xef\xbb\xbfb")
    assert texts_of(open_at(tmp_path)) == ["a", "b"]


def test_a_text_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.txt is not UTF-8"):
        texts_of(open_at(write(tmp_path / "a.txt", b"\xff")))


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-20]])
def test_a_damaged_gzip_file_is_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl\.gz cannot be read"):
        texts_of(open_at(write(tmp_path / "a.jsonl.gz", content)))


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.parquet cannot be read as Parquet"):
        open_at(write(tmp_path / "a.parquet", "no parquet")).label_dtypes()


@pytest.mark.parametrize("values", [[1, 2], [b"a", b"b"], [["a"], ["b"]]])
def test_a_parquet_text_column_of_another_type_is_refused(tmp_path: Path, values: list[Any]) -> None:
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"column 'text' holds .*, not text"):
        texts_of(open_at(tmp_path / "a.parquet"))


def test_parquet_text_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([b"a", b"\xff"]).view(pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet holds text that is not UTF-8"):
        texts_of(open_at(tmp_path / "a.parquet"))


def test_a_parquet_label_of_another_type_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "tags": [["x"]]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="label column 'tags' holds list"):
        open_at(tmp_path / "a.parquet", label_columns=["tags"]).label_dtypes()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (pa.int8(), "Int64"),
        (pa.uint64(), "Int64"),
        (pa.float32(), "Float64"),
        (pa.large_string(), "String"),
        (pa.dictionary(pa.int32(), pa.string()), "String"),
    ],
)
def test_narrow_and_packed_types_of_parquet_are_taken(tmp_path: Path, kind: pa.DataType, dtype: str) -> None:
    value = "x" if dtype == "String" else 2
    table = pa.table({"text": pa.array(["a"]), "label": pa.array([value]).cast(kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    source = open_at(tmp_path / "a.parquet", label_columns=["label"])
    assert (source.label_dtypes(), next(source.documents()).labels) == ({"label": dtype}, (value,))


def test_a_packed_parquet_text_column_is_read(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    assert texts_of(open_at(tmp_path / "a.parquet")) == ["a", "b", "a"]


def test_files_whose_labels_have_different_types_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "year": [1900]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a"], "year": ["1900"]}), tmp_path / "b.parquet")
    with pytest.raises(
        InputError, match=r"b\.parquet: label column 'year' is String, but Int64 in an earlier file"
    ):
        open_at(tmp_path, label_columns=["year"]).label_dtypes()


def test_many_row_groups_and_batches_keep_the_order(tmp_path: Path) -> None:
    texts = [str(n) for n in range(1000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=300)
    assert texts_of(open_at(tmp_path / "a.parquet")) == texts


def test_the_bytes_of_text_are_estimated_from_any_format(tmp_path: Path) -> None:
    texts = ["some words in a row " * 50 + str(n) for n in range(100)]
    size = sum(map(len, texts))
    pq.write_table(pa.table({"text": texts, "other": texts}), tmp_path / "a.parquet", compression="zstd")
    write(tmp_path / "b.jsonl", json_lines(texts, {}))
    for name in ("a.parquet", "b.jsonl"):
        result = open_at(tmp_path / name).estimated_bytes()
        assert result == pytest.approx(size, rel=0.05)


def test_an_unknown_kind_lists_the_known_ones() -> None:
    corpus = Corpus.model_construct(kind="speech", path="x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"corpus\.kind is 'speech'; known kinds: text"):
        open_source(corpus)


def test_a_corpus_with_a_column_twice_is_a_sentence(tmp_path: Path) -> None:
    texts = pa.array(["a", "b"])
    pq.write_table(pa.Table.from_arrays([texts, texts], ["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet has several columns 'text'"):
        open_at(tmp_path / "a.parquet").label_dtypes()


def test_a_folder_that_may_not_be_listed_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def closed(path: object) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(InputError, match=r"closed cannot be listed \(Permission denied\)"):
        open_at(tmp_path).digest()


def test_texts_and_labels_of_csv_are_as_they_are_spelled(tmp_path: Path) -> None:
    lines = ["text,day,word,n", "17,2026-01-31,NA,1", '"a ""b""\nc, d",2026-02-01,nan,', ",,,3"]
    source = open_at(write(tmp_path / "a.csv", "\n".join(lines)), label_columns=["day", "word", "n"])
    assert source.label_dtypes() == {"day": "String", "word": "String", "n": "Int64"}
    assert [(d.text, *d.labels) for d in source.documents()] == [
        ("17", "2026-01-31", "NA", 1),
        ('a "b"\nc, d', "2026-02-01", "nan", None),
        ("", None, None, 3),
    ]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"text,n\na,1\nb\n", "cannot be read as CSV: .*columns"),
        (b"", "cannot be read as CSV: Empty CSV file"),
        (b"text,text\na,b\n", "has several columns 'text'"),
        (b"text\n\xff\n", "cannot be read as CSV: .*UTF8"),
    ],
)
def test_a_csv_file_that_cannot_be_read_is_a_sentence(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(InputError, match=rf"a\.csv {why}"):
        list(open_at(write(tmp_path / "a.csv", content)).documents())


def test_a_csv_file_next_to_documents_of_another_format_is_not_read(tmp_path: Path) -> None:
    for name, text in {"a.csv": "text\none", "b.csv": "text\ntwo"}.items():
        write(tmp_path / name, text)
    assert texts_of(open_at(tmp_path)) == ["one", "two"]
    write(tmp_path / "c.txt", "three")
    assert texts_of(open_at(tmp_path)) == ["three"]


def test_a_long_document_of_csv_is_read_whole(tmp_path: Path) -> None:
    texts = ["a" * 3_000_000, "b", "c" * 2_000_000]
    assert texts_of(open_at(write(tmp_path / "a.csv", "\n".join(["text", *texts])))) == texts


ROWS = {"body": ["a b", None], "year": [1, None], "tags": [["x"], []], "day": ["1", "2"]}


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_the_first_rows_have_every_column_whatever_the_corpus_section_names(
    tmp_path: Path, kind: str
) -> None:
    frame, path = pl.DataFrame(ROWS), tmp_path / f"a.{kind}"
    if kind == "parquet":
        frame.write_parquet(path)
    elif kind == "jsonl":
        frame.write_ndjson(path)
    else:
        frame = frame.drop("tags")
        frame.with_columns(pl.col("day").cast(pl.Int64)).write_csv(path)
    if kind != "csv":
        write(tmp_path / "0.txt", "no columns")
    source = open_at(tmp_path)
    assert isinstance(source, FilesSource)
    expected = frame.with_columns(pl.col("day").cast(pl.Int64)) if kind == "csv" else frame
    assert source.first_rows(9).equals(expected)
    assert source.first_rows(1).equals(expected.head(1))


def test_a_column_of_several_types_is_of_no_type_in_the_first_rows(tmp_path: Path) -> None:
    source = open_at(
        write(tmp_path / "a.jsonl", '{"text": "a", "x": 1}\n{"text": "b", "x": "y", "z": true}\n')
    )
    assert isinstance(source, FilesSource)
    assert source.first_rows(9).schema == {"text": pl.String, "x": pl.Object, "z": pl.Boolean}
