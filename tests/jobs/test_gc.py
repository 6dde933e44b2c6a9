"""gc removes what nobody will read, once it is old, and nothing else."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from jobs.cli import main
from jobs.lake.gc import gc
from pipeline.store import FeatureStore
from pipeline.store.objects.verbs import walk, write_atomic
from pipeline.store.records.commits import read_commits
from pipeline.store.upkeep import compaction, garbage
from pipeline.tasks import OneProcess
from schemas.errors import InputError
from schemas.layout import Layout
from tests.fixtures.store import build

OLD, YOUNG = 30.0, 20.0
A, B, C = "a" * 32, "b" * 32, "c" * 32


def age(path: Path, hours: float) -> None:
    then = time.time() - hours * 3600
    os.utime(path, (then, then))


def put(path: Path, hours: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 100)
    age(path, hours)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store whose committed attempts are old too."""
    build(tmp_path, shards=3, commits=2)
    for name, _, _ in walk(tmp_path):
        age(tmp_path / name, 100)
    return tmp_path


def names(root: Path) -> set[str]:
    return {name for name, _, _ in walk(root)}


def test_it_removes_old_attempts_without_a_receipt_and_old_temporary_files(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = names(root)
    data = root / "passes" / "p" / "data"
    gone = [
        put(data / "000000" / A / "site" / "postings.parquet", OLD),
        put(data / "000002" / A / "site" / "csr.zarr" / "data" / "c" / "0", OLD),
        put(data / "000002" / A / "site" / f".partials.parquet.{B}.tmp", OLD),
        put(root / "tables" / "site" / f".features.parquet.{A}.tmp", OLD),
        put(root / "passes" / "p" / "sites" / f".site.zarr.{A}.tmp" / "W_dec" / "zarr.json", OLD),
        put(root / f".self-test.{A}.tmp", OLD),
        put(root / f".probe.{B}.tmp", 31 * 24),
        put(root / "passes" / "p" / "compactions" / A / "site" / "00000000.parquet", OLD),
    ]
    stays = [
        put(data / "000002" / B / "site" / "postings.parquet", YOUNG),  # perhaps still being written
        put(data / "000002" / C / "site" / "postings.parquet", OLD),
        put(data / "000002" / C / "other" / "postings.parquet", YOUNG),
        put(root / "tables" / "site" / f".l0.parquet.{A}.tmp", YOUNG),
        put(data / "000000" / "a" / "site" / f".left.{A}.tmp", OLD),  # in a committed attempt
        put(data / "000002" / "notes" / "site" / "x", OLD),  # nobody of ours gives such a name
        put(data / "000002" / A.upper() / "x", OLD),
        put(root / "passes" / "unplanned" / "data" / "000000" / A / "x", OLD),
        put(root / f".probe.{A}.tmp", 29 * 24),  # of a pass that runs for weeks
        put(root / "passes" / "p" / "compactions" / B / "site" / "00000000.parquet", YOUNG),
        put(root / "passes" / "p" / "compactions" / "mine" / "site" / "x", OLD),
        put(root / ".hidden", OLD),
        put(root / "my.tmp", OLD),
        put(root / f"features.{A}.tmp", OLD),
    ]
    store = FeatureStore.open(root)
    problems = store.verify().problems
    result = gc(store, 24, dry_run=True)
    assert names(root) == before | {path.relative_to(root).as_posix() for path in gone + stays}
    assert sum(item.bytes for item in result) == 800
    assert gc(store, 24, dry_run=False) == result
    assert names(root) == before | {path.relative_to(root).as_posix() for path in stays}
    said = " ".join(capsys.readouterr().out.split())
    assert "gc removed 7 of 7 attempts, compactions and temporary files older than 24 hours" in said
    assert gc(store, 24, dry_run=False) == []
    assert store.verify().problems == problems


def test_an_attempt_that_is_committed_or_written_meanwhile_stays(root: Path) -> None:
    layout = Layout(root)
    committed = put(layout.attempt("p", "000002", A) / "site" / "x", OLD)
    written = put(layout.attempt("p", "000002", B) / "site" / "x", OLD)
    result = garbage.find_garbage(layout, 24 * 3600)
    assert [item.attempt for item in result] == [("p", "000002", A), ("p", "000002", B)]
    receipt = read_commits(layout, "p")["000000"].model_copy(update={"shard": "000002", "attempt": A})
    write_atomic(layout.commit("p", "000002"), receipt.to_json())
    age(written, 0)
    assert list(garbage.remove_garbage(layout, result)) == []
    assert committed.exists()
    assert written.exists()


def test_the_command_says_what_would_go(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(root / "passes" / "p" / "data" / "000002" / A / "site" / "x", OLD)
    for arguments, said in (
        (["--older-than", "40"], "would remove 0 of 0"),
        ([], "would remove 1 of 1 attempts, compactions and temporary files older than 24 hours"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["gc", str(root), "--dry-run", *arguments])
        assert ended.value.code in (None, 0)
        assert said in " ".join(capsys.readouterr().out.split())


def test_a_damaged_receipt_stops_it(root: Path) -> None:
    attempt = put(root / "passes" / "p" / "data" / "000000" / A / "site" / "x", OLD)
    (root / "passes" / "p" / "commits" / "000000.json").write_bytes(b"{")
    with pytest.raises(InputError):
        gc(FeatureStore.open(root), 24, dry_run=False)
    assert attempt.exists()


def compact(root: Path, hours: float) -> Path:
    """The marker of a new compaction, published that long ago."""
    folder = root / "passes" / "p" / "compactions"
    before = set(names(folder))
    compaction.compact(FeatureStore.open(root), "site", OneProcess())
    new = set(names(folder)) - before
    for name in new:
        age(folder / name, hours)
    (marker,) = (folder / name for name in new if name.endswith(".json"))
    return marker


def commit_third(root: Path) -> None:
    """Commit the third shard, with the data of the second."""
    layout = Layout(root)
    receipt = read_commits(layout, "p")["000001"]
    (layout.attempt("p", "000002", "a").parent).mkdir(exist_ok=True)
    shutil.copytree(layout.attempt("p", "000001", "a"), layout.attempt("p", "000002", "a"))
    write_atomic(layout.commit("p", "000002"), receipt.model_copy(update={"shard": "000002"}).to_json())


def test_a_compaction_goes_once_an_old_and_whole_one_covers_more(root: Path) -> None:
    first, twin = compact(root, OLD), compact(root, OLD)
    store, before = FeatureStore.open(root), names(root)
    assert gc(store, 24, dry_run=False) == []  # neither covers more
    commit_third(root)
    larger = compact(root, YOUNG)
    assert gc(store, 24, dry_run=False) == []  # a query may still read those of before
    for name in names(larger.parent):
        if name.startswith(larger.stem):
            age(larger.parent / name, OLD)
    file = larger.with_suffix("") / "site" / "00000000.parquet"
    file.rename(file.with_name("away"))
    assert gc(store, 24, dry_run=False) == []
    file.with_name("away").rename(file)
    gone = gc(store, 24, dry_run=False)
    assert {item.marker for item in gone} == {first, twin}
    assert names(larger.parent) == {name for name in names(larger.parent) if name.startswith(larger.stem)}
    assert before - names(root) == {name for name in before if first.stem in name or twin.stem in name}


def test_a_compaction_that_is_published_meanwhile_or_cannot_be_read_stays(root: Path) -> None:
    marker = compact(root, OLD)
    content = marker.read_bytes()
    marker.write_bytes(b"{")
    assert garbage.find_garbage(Layout(root), 24 * 3600) == []
    marker.unlink()
    result = garbage.find_garbage(Layout(root), 24 * 3600)
    assert [item.marker for item in result] == [marker]
    marker.write_bytes(content)
    assert list(garbage.remove_garbage(Layout(root), result)) == []
    assert marker.with_suffix("").is_dir()


def test_less_than_an_hour_must_be_forced(root: Path) -> None:
    attempt = put(root / "passes" / "p" / "data" / "000002" / A / "site" / "x", 0.5)
    store = FeatureStore.open(root)
    with pytest.raises(InputError, match=r"--older-than is 0\.1 hours.*--force"):
        gc(store, 0.1, dry_run=False)
    assert attempt.exists()
    assert len(gc(store, 0.1, dry_run=False, force=True)) == 1
