"""Letters of several byte tokens are whole in every view: terminal, HTML, report, exports."""

from __future__ import annotations

import gzip
import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.terminal.strips import shown, strips_of
from pipeline.store import FeatureStore
from tests.fixtures.report import blocks_of, index_of, pages_of
from tests.fixtures.runs import extracted, run_content, run_file
from tests.kit import write_tiny_tokenizer

TEXTS = [
    "안녕하세요 세계는 넓고 할 일은 많다 " * 2,
    "Все счастливые семьи похожи друг на друга",
    "吾輩は猫である。名前はまだ無い。",
    "🙂 abc 👩‍👧 def ❤️ 값",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    folder = tmp_path_factory.mktemp("lake")
    run_content(folder)
    pl.DataFrame({"text": TEXTS, "year": [1, 2, 3, 4], "party": ["a"] * 4}).write_parquet(
        folder / "corpus.parquet"
    )
    write_tiny_tokenizer(folder / "tokenizer", "bytes")
    return extracted(run_file(folder, tokens={"context_size": 256, "contexts": "document"}))


@pytest.fixture(scope="module")
def feature(store: FeatureStore) -> int:
    """One that fires in many rows."""
    return int(store.scan_features("mid").sort("n_active").last().collect()["feature"][0])


def said(store: FeatureStore, command: str, *arguments: object) -> str:
    done = CliRunner().invoke(app, [*command.split(), str(store.layout.root), *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0
    return done.output


def test_a_strip_is_the_documents_own_text_and_marks_the_firing_character(
    store: FeatureStore, feature: int
) -> None:
    described = store.contexts("mid", feature, 500, before=7, after=1)
    rows, values = store.rows_of("mid", feature)
    marked = set()
    for strip, row in zip(
        strips_of(store, described, rows, values), described.iter_rows(named=True), strict=True
    ):
        assert strip.firing is not None
        if row["position"] and not {0, 1} & set(row["token_ids"]):
            assert "".join(strip.pieces) in TEXTS[row["document"]]
        assert np.abs(strip.values[strip.firing]) >= np.abs(np.float32(row["activation"]))
        marked.add(strip.pieces[strip.firing])
    assert len({piece for piece in marked if ord(piece[0]) > 0x400}) > 5


@pytest.mark.parametrize("command", ["top", "feature"])
def test_the_terminal_shows_whole_letters(store: FeatureStore, feature: int, command: str) -> None:
    text = said(store, command, feature, "-k", 60, "--before", 6, "--after", 0)
    assert "�" not in text
    assert re.search("[가-힣]", text)


def test_pages_show_whole_letters(store: FeatureStore, feature: int, tmp_path: Path) -> None:
    said(store, "top", feature, "-k", 60, "--html", tmp_path / "top.html")
    said(store, "report", "--out", tmp_path / "report", "--features", feature)
    site = tmp_path / "report/sites/mid"
    tokens = index_of(site)["tokens"]
    rows = [row for rows, *_ in blocks_of(pages_of(site)[feature], "strips") for row in rows]
    strips = ["".join(piece if isinstance(piece, str) else tokens[piece] for piece in row[1]) for row in rows]
    for text in ("\n".join(strips), unescape(re.sub("<[^>]*>", "", (tmp_path / "top.html").read_text()))):
        assert "�" not in text
        assert re.search("[가-힣]{2}", text)


def test_a_typed_text_shows_whole_letters(store: FeatureStore) -> None:
    text = said(store, "elicit", "안녕 👩‍👧 ❤️", "--model", "tests.kit:tiny_lm")
    assert "�" not in text
    assert re.search(r"\|[안녕]|👩‍👧|❤️\|", text)


def test_exports_have_a_text_for_each_token_that_joins_to_the_document(
    store: FeatureStore, feature: int, tmp_path: Path
) -> None:
    said(store, "export neuronpedia", "--out", tmp_path / "out", "--features", feature, "--layer", 1)
    (file,) = (tmp_path / "out").rglob("activations/*.jsonl.gz")
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).decode().splitlines()]
    assert all(len(row["tokens"]) == len(row["values"]) for row in rows)
    words = [piece for row in rows for piece in row["tokens"] if re.fullmatch("[가-힣]", piece)]
    assert len(words) > 10


def test_joiners_of_emoji_stay_and_other_hidden_characters_are_marked() -> None:
    assert shown("👩‍👧 ❤️ 1️⃣") == "👩‍👧·❤️·1️⃣"
    assert shown("a\u200db\ufe0f\u202e") == "a�b��"
