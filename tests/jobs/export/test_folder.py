"""An export's folder appears whole or not at all, and takes the place of an earlier export alone."""

from __future__ import annotations

import json

import pytest

from jobs.cli import app
from jobs.command.exits import run_app
from jobs.export.folder import distinct_names, new_export, safe_name
from schemas.errors import InputError
from tests.fixtures.exports import built_store

ABOUT = {"format": "made", "sites": ["site"], "features": "all"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return built_store(tmp_path_factory.mktemp("store"))[1]


def write(store, out, *names):
    with new_export(str(out), store, ABOUT) as folder:
        for name in names:
            (folder / name).mkdir()
            (folder / name / "file").write_text(name)


def test_a_former_export_is_replaced_whole(store, tmp_path):
    write(store, tmp_path / "out", "a", "b")
    write(store, tmp_path / "out", "c")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["c", "export.json"]
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["holds"] == ["c"]
    assert record["receipts"] == {"site": store.receipts_digest("site")}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_taken(store, tmp_path):
    (tmp_path / "out").mkdir()
    write(store, tmp_path / "out", "a")
    assert (tmp_path / "out" / "a" / "file").read_text() == "a"


def test_a_folder_that_holds_anything_else_is_refused_and_stays(store, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    with pytest.raises(InputError, match=r"thesis\.tex.*which no earlier export wrote"):
        write(store, tmp_path / "mine", "a")
    write(store, tmp_path / "out", "a")
    (tmp_path / "out" / "scores").mkdir()  # what a consumer wrote next to it
    with pytest.raises(InputError, match="holds 'scores'"):
        write(store, tmp_path / "out", "a")
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "export.json").write_text("[]")
    with pytest.raises(InputError, match=r"holds 'export\.json'"):
        write(store, tmp_path / "fake", "a")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"


def test_what_breaks_on_the_way_leaves_the_former_export_and_nothing_else(store, tmp_path):
    write(store, tmp_path / "out", "a")
    with pytest.raises(FileNotFoundError):
        write(store, tmp_path / "out", "half", "no/folder")
    assert (tmp_path / "out" / "a" / "file").read_text() == "a"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_file_and_a_url_are_refused(store, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write(store, tmp_path / "file")
    with pytest.raises(InputError, match="to a local folder"):
        write(store, "s3://bucket/out")


def test_names_of_hooks_stay_inside_the_folder():
    assert safe_name("layers.9") == "layers.9"
    assert safe_name("../../etc/passwd") == "_.._etc_passwd"
    assert safe_name("..") == "_"
    assert distinct_names(["h", "h", "k"], ["a", "b", "c"]) == ["a", "b", "k"]


def test_a_folder_with_brackets_in_its_name_is_printed_as_it_is(store, tmp_path, capsys):
    out = tmp_path / "[red]out"
    with pytest.raises(SystemExit):
        run_app(app, ["export", "anndata", str(store.layout.root), "--out", str(out)])
    assert f"written to {out} (" in capsys.readouterr().out
