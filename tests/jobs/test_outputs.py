"""What a command writes to a given place: a place that cannot be is named at once, by its option."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.terminal.outputs import require_file, write_file
from pipeline.store import FeatureStore
from pipeline.store.records.tables import require_writable
from schemas.errors import InputError
from tests.fixtures.store import build


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without tables: a command that got beyond its options would complain of them."""
    folder = tmp_path_factory.mktemp("store")
    build(folder, shards=2)
    return folder


def test_a_file_is_replaced_whole_and_folders_on_the_way_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "page.html"
    for data in (b"long before", b"now"):
        write_file(path, data, "--html")
        assert path.read_bytes() == data
    assert [each.name for each in path.parent.iterdir()] == ["page.html"]


def test_nothing_requested_is_nothing_refused() -> None:
    require_file(None, "--html")


@pytest.mark.parametrize("place", ["folder", "a-file/page.html"])
def test_where_no_file_can_be_is_reported_with_option_and_place(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "a-file").touch()
    for check in (require_file, lambda path, option: write_file(path, b"", option)):
        with pytest.raises(
            InputError, match=f"^--html {tmp_path / place} cannot be a file: give a path that is"
        ):
            check(tmp_path / place, "--html")


@pytest.mark.parametrize(
    ("command", "option", "name"),
    [
        (("top", "{root}", "3"), "--html", "folder"),
        (("elicit", "{root}", "war"), "--html", "folder"),
        (("neighbours", "{root}", "3"), "--figure", "folder.svg"),
        (("heatmap", "{root}", "--features", "3"), "--out", "folder.png"),
        (("diff", "{root}", "{root}"), "--out", "folder.parquet"),
        (("check-sae", "no-sae"), "--json", "folder.json"),
    ],
)
def test_commands_refuse_a_folder_before_they_begin(
    root: Path, tmp_path: Path, command: tuple[str, ...], option: str, name: str
) -> None:
    (tmp_path / name).mkdir()
    words = [word.format(root=root) for word in command]
    done = CliRunner().invoke(app, [*words, option, str(tmp_path / name)])
    assert isinstance(done.exception, InputError)
    assert str(done.exception) == (
        f"{option} {tmp_path / name} cannot be a file: give a path that is not a folder, inside an existing "
        "folder"
    )


def test_a_place_where_nothing_can_be_written_is_reported_before_the_work() -> None:
    with pytest.raises(InputError, match=r"^--html /proc/page.html cannot be written \(.*\): give --html"):
        require_file(Path("/proc/page.html"), "--html")


@pytest.mark.parametrize(
    "module", ["evaluation.fidelity", "evaluation.logits", "evaluation.attribute", "lake.derive"]
)
def test_jobs_that_run_a_model_look_first_whether_their_tables_can_be_written(
    tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path, shards=1)
    store = FeatureStore.open(tmp_path)
    site = next(iter(store.sites))
    (tmp_path / "tables").mkdir(exist_ok=True)
    shutil.rmtree(tmp_path / "tables" / site, ignore_errors=True)
    (tmp_path / "tables" / site).write_bytes(b"a file where the folder should be")
    job = importlib.import_module(f"jobs.{module}")
    name_of_job = module.partition(".")[2]
    for name in ("_work", "use_for_logits", "_columns", "choose_tasks"):
        if hasattr(job, name):
            monkeypatch.setattr(job, name, None)  # nothing else is begun
    with pytest.raises(InputError, match=r"cannot be written: a part of its path is a file"):
        getattr(job, name_of_job)(store, site, *([None] if name_of_job == "derive" else []))


def test_the_look_leaves_nothing_behind(root: Path) -> None:
    store = FeatureStore.open(root)
    site = next(iter(store.sites))
    require_writable(store.layout, site)
    folder = root / "tables" / site
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
