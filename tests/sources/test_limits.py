"""Small files cannot take the machine: documents, lines, prompts and images have limits, each a sentence."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from pipeline.sources import open_source, values
from pipeline.sources.images import files as image_files
from pipeline.sources.prompts import sets as prompt_sets
from pipeline.sources.text import readers as formats
from schemas.errors import InputError
from schemas.run.file import Corpus

LIMIT = 1000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that take no time to reach; a process of its own has the real ones."""
    for module in (values, formats, prompt_sets):
        monkeypatch.setattr(module, "MOST_TEXT", LIMIT)
    monkeypatch.setattr(formats, "MOST_LINE", 3 * LIMIT)


def read(path: Path, **requested: Any) -> list[str]:
    source = open_source(Corpus.model_validate({"path": str(path), **requested}))
    return [document.text for document in source.documents()]


def write(path: Path, texts: list[str]) -> Path:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    if path.suffix == ".parquet":
        pl.DataFrame({"text": texts}).write_parquet(path)
    elif path.suffix == ".txt":
        path.write_text(texts[-1])
    else:
        path.write_bytes(gzip.compress(rows) if path.suffix == ".gz" else rows)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.txt"])
@pytest.mark.parametrize("letter", ["a", "값"])
def test_a_document_may_be_as_large_as_the_limit_and_no_larger(
    tmp_path: Path, name: str, letter: str
) -> None:
    fits = letter * (LIMIT // len(letter.encode()))
    path = write(tmp_path / name, ["b", fits])
    assert read(path)[-1] == fits
    write(path, ["b", fits + letter])
    with pytest.raises(InputError, match=r"a document of 1,00\d bytes, more than the allowed 1,000: cut it"):
        read(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("line", [b'{"text": "a", "more": "' + b"x" * 5000 + b'"}', b" " * 5000])
def test_a_line_has_a_limit_too(tmp_path: Path, name: str, line: bytes) -> None:
    data = b'{"text": "a"}\n' + line
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(InputError, match=f"{name}:2 is a line of more than 3,000 bytes"):
        read(tmp_path / name)


def test_json_that_is_nested_deeply_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + "[" * 1500)
    with pytest.raises(InputError, match=r"a.jsonl:2 is not JSON"):
        read(tmp_path / "a.jsonl")


def test_a_text_that_a_dictionary_repeats_is_read_row_by_row(tmp_path: Path) -> None:
    texts = ["a" * 900] * 600 + ["b"]
    assert read(write(tmp_path / "a.parquet", texts)) == texts


def templates(path: Path, slots: int, labels: int, text: str = "") -> Path:
    content = {
        "slots": {f"s{n}": {f"l{k}": f"w{k}" for k in range(labels)} for n in range(slots)},
        "templates": [{"text": text + " ".join(f"{{s{n}}}" for n in range(slots)), "answers": ["a", "b"]}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_prompts_are_counted_before_any_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_sets, "MOST_TEXT", 10**6)
    monkeypatch.setattr(values, "MOST_TEXT", 10**6)
    path = templates(tmp_path / "many.yaml", 12, 10)
    with pytest.raises(InputError, match=r"many.yaml makes 1,000,000,000,000 prompts .* at most 1,000,000"):
        read(path, kind="prompts")
    assert len(read(templates(tmp_path / "few.yaml", 3, 4), kind="prompts")) == 64
    monkeypatch.setattr(prompt_sets, "MOST_CHARACTERS", 10**5)
    with pytest.raises(InputError, match="makes 64 prompts of up to 641,280 characters in total"):
        read(templates(tmp_path / "long.yaml", 3, 4, "x" * 10_000), kind="prompts")


def images(path: Path, shape: tuple[int, ...]) -> Path:
    """A small file that unpacks to zeros of this shape."""
    size = int(np.prod(shape))
    if path.suffix == ".npz":
        np.savez_compressed(path, images=np.zeros(shape, np.uint8), labels=np.zeros(shape[0], np.int64))
    elif path.suffix == ".npy":
        with path.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.truncate(file.tell() + size)  # zeros that take no room on the disk
        np.save(path.with_name(path.name.replace("images", "labels")), np.zeros(shape[0], np.int64))
    else:
        axes = b"".join(side.to_bytes(4, "big") for side in shape)
        with gzip.open(path, "wb") as file:
            file.write(bytes([0, 0, 8, len(shape)]) + axes + bytes(size))
    return path


@pytest.mark.parametrize("name", ["images.npz", "images.npy", "images-idx3-ubyte.gz"])
def test_images_that_unpack_to_too_much_are_refused_by_their_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(image_files, "MOST_NUMBERS", 10_000)
    monkeypatch.setattr(image_files, "MOST_BYTES", 1 << 20)
    requested = {"image": "images", "label": "labels"}
    large = images(tmp_path / name, (1100, 32, 32))
    with pytest.raises(InputError, match=f"{name}.* unpacks to more than"):
        read(large, kind="images", images=requested)
    if not name.endswith(".gz"):
        with pytest.raises(InputError, match=f"{name}.* holds images of 1,000,000 numbers each"):
            read(images(tmp_path / name, (1, 1000, 1000)), kind="images", images=requested)


CODE = """
import resource, sys
from pipeline.sources import open_source
from schemas.run.file import Corpus
from schemas.errors import InputError
corpus = Corpus.model_validate({"path": sys.argv[1]})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    source = open_source(corpus)
    source.label_dtypes()
    for document in source.documents():
        pass
    print("read")
except InputError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("a.jsonl.gz", 400), ("a.parquet", 3000), ("a.txt", 200)])
def test_a_gigabyte_in_one_document_takes_no_more_memory_than_the_limit(
    tmp_path: Path, name: str, most: int
) -> None:
    path, size = tmp_path / name, 1 << 30
    if name == "a.txt":
        with path.open("wb") as file:
            file.truncate(size)
    elif name == "a.parquet":
        code = (
            f"import polars as pl; pl.DataFrame({{'text': ['b', 'a' * {size}]}}).write_parquet({str(path)!r})"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
    else:
        with gzip.open(path, "wb", 1) as file:
            file.write(b'{"text": "')
            for _ in range(64):
                file.write(b"a" * (size // 64))
            file.write(b'"}\n')
    done = subprocess.run([sys.executable, "-c", CODE, str(path)], check=True, capture_output=True, text=True)
    output, grown = done.stdout.splitlines()
    assert "bytes" in output
    assert int(grown) < most
