"""An append says how many of its documents are in the store already, whatever their file is called."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from jobs.lake.tokenize import tokenize
from pipeline.store.records.tokens import read_links
from schemas.errors import InputError
from schemas.layout import Layout
from tests.fixtures.runs import run_content, run_file, write_corpus


def appended(folder: Path, texts: list[str], **tokens: object) -> int:
    """How many documents of an append the link says were there."""
    corpus = pl.DataFrame({"text": texts, "year": range(len(texts)), "party": ["a"] * len(texts)})
    corpus.write_parquet(folder / "more.parquet")
    tokenize(run_file(folder, corpus={"path": str(folder / "more.parquet")}, tokens=tokens), append=True)
    return int(read_links(Layout(folder / "store"))[-1].source.get("repeated_documents", 0))


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    run_content(tmp_path)
    return pl.read_parquet(write_corpus(tmp_path / "corpus.parquet"))["text"].to_list()


@pytest.mark.parametrize(
    "tokens", [{}, {"prepend_bos": False, "separator": "none"}, {"contexts": "document", "context_size": 128}]
)
def test_documents_that_are_there_are_counted(
    tmp_path: Path, texts: list[str], tokens: dict[str, object]
) -> None:
    tokenize(run_file(tmp_path, tokens=tokens))
    assert appended(tmp_path, [*texts[5:9], "w1 w2", texts[0] + " w1", "", texts[20]], **tokens) == 5


def test_a_corpus_of_which_all_is_there_is_refused_and_leaves_nothing(
    tmp_path: Path, texts: list[str]
) -> None:
    tokenize(run_file(tmp_path))
    with pytest.raises(
        InputError, match=r"all 24 documents of corpus\.path .*more\.parquet' are already in the store"
    ):
        appended(tmp_path, texts[::-1])
    assert len(read_links(Layout(tmp_path / "store"))) == 1
    assert appended(tmp_path, ["w3 w4"]) == 0


def test_it_is_said_with_the_number_and_said_again(
    tmp_path: Path, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    tokenize(run_file(tmp_path))
    appended(tmp_path, [*texts[:3], "w1"])
    assert "3 of the 4 documents are already in the store, judged by their text" in capsys.readouterr().out
    appended(tmp_path, [*texts[:3], "w1"])
    assert "3 of the 4 documents were already in the store" in capsys.readouterr().out
