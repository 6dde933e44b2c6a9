"""`latentlake annotate` and `annotations`: what is typed, printed, exported and imported."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import pytest

from jobs.terminal.json_lines import read_json_lines
from jobs.terminal.names import one_line
from pipeline.store import FeatureStore
from pipeline.store.records.annotations import read_annotations
from schemas.errors import InputError
from tests.fixtures.store import build
from tests.jobs.conformance import end

HOSTILE = "[bold]x[/] <script>alert(1)</script> \u202egnihton\u2066 \u200b\\"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "store"
    build(folder, shards=1)
    return folder


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "store"))


def edits(root: Path) -> list[Path]:
    return sorted((root / "annotations").rglob("*.json"))


def test_what_is_typed_is_kept_once_and_listed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert end("annotate", str(root), "3", "--name", "wars", "--note", "of the\n19th century", "--star") == 0
    assert "annotate site: feature 3 ★ wars of the↩19th century" in capsys.readouterr().out
    assert end("annotate", str(root), "3", "--name", " wars ", "--star") == 0
    assert len(edits(root)) == 1
    assert end("annotate", str(root), "4", "--name", "x") == 0
    assert end("annotate", str(root), "3", "--no-star", "--note", "") == 0
    assert end("annotate", str(root), "4", "--name", "") == 0
    assert "feature 4 has no star, name or note" in capsys.readouterr().out
    assert end("annotations", str(root)) == 0
    assert capsys.readouterr().out.splitlines() == ["annotations site: 1 feature", "        3  wars"]
    table = read_annotations(FeatureStore.open(root), "site").table
    assert table.select("feature", "star", "name", "note").rows() == [(3, False, "wars", None)]


def test_hostile_names_are_shown_as_they_are_and_steer_nothing(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end("annotate", str(root), "3", "--name", HOSTILE) == 0
    assert end("annotations", str(root)) == 0
    shown = "[bold]x[/] <script>alert(1)</script> \ufffdgnihton\ufffd \ufffd\\"
    assert capsys.readouterr().out.count(shown) == 2
    assert one_line(HOSTILE) == shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give --name, --note, --star or --no-star"),
        (("--name", "a" * 201), "it has 201 characters: shorten it to 200"),
        (("--name", "a\x1b]0;title\x07"), "it has the control character '\\x1b'"),
    ],
)
def test_what_cannot_be_kept_ends_with_2(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    assert end("annotate", str(root), "3", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
    assert edits(root) == []


@pytest.mark.parametrize("name", ["edits.jsonl", "edits.jsonl.gz"])
def test_an_exported_file_brings_the_edits_to_another_store(
    root: Path, tmp_path: Path, made: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert end("annotate", str(root), "3", "--name", HOSTILE) == 0
    assert end("annotate", str(root), "4", "--star", "--author", "Ann") == 0
    file, other = tmp_path / "edits.jsonl", Path(shutil.copytree(made, tmp_path / "other"))
    assert end("annotations", str(root), "--export", str(file)) == 0
    assert [json.loads(line)["feature"] for line in file.read_text().splitlines()] == [3, 4]
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(file.read_bytes()))
    for known in (0, 2):
        assert end("annotations", str(other), "--import", str(tmp_path / name)) == 0
        assert f"{2 - known} new edits; {known} were there already" in capsys.readouterr().out
    assert [path.read_bytes() for path in edits(other)] == [path.read_bytes() for path in edits(root)]
    line = {"feature": 1, "sae_digest": "0123456789abcdef", "name": "not mine"}
    file.write_text(json.dumps(line) + "\n\n")
    assert end("annotations", str(other), "--import", str(file)) == 0
    assert "1 new edit, 1 of them of another SAE; 0 were there already" in capsys.readouterr().out
    assert end("annotations", str(other)) == 0
    assert "1  not mine  of another SAE, 0123456789a…: not shown elsewhere" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b'{"feature": 1, "star": true}\n{', "line 2 of .* is not JSON"),
        (b'{"feature": 1, "star": true, "star": true}', "line 1 of .* is not JSON"),
        (b"[]", "line 1 of .* is not a JSON object"),
        (gzip.compress(b"{}" * 100, mtime=0)[:-9], "is damaged after line"),
        (b"no gzip", "is damaged after line 0"),
    ],
)
def test_a_file_that_is_damaged_is_one_sentence(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes, sentence: str
) -> None:
    packed = "gzip" in sentence or (b"feature" not in data and data != b"[]")
    file = tmp_path / ("edits.jsonl.gz" if packed else "edits.jsonl")
    file.write_bytes(data)
    assert end("annotations", str(root), "--import", str(file)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(sentence, line)
    assert edits(root) == []


def test_a_file_that_is_not_there_or_has_an_endless_line_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl cannot be read \(No such file"):
        list(read_json_lines(tmp_path / "none.jsonl"))
    monkeypatch.setattr("jobs.terminal.json_lines.LONGEST_LINE", 10)
    (tmp_path / "long.jsonl").write_text('{"a": 1}\n{"b": "0123456789"}\n')
    with pytest.raises(InputError, match=r"line 2 of .* has more than 10 bytes"):
        list(read_json_lines(tmp_path / "long.jsonl"))
