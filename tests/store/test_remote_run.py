"""A whole run on object storage gives the bytes of the same run on a folder, also through faults."""

from __future__ import annotations

import time
from pathlib import Path

import polars as pl
import pytest

from jobs.cli import main
from jobs.lake.gc import gc
from jobs.lake.run import run
from jobs.tables.stats import stats
from pipeline.monitor.events import EventLog, read_events
from pipeline.store import FeatureStore
from pipeline.store.objects import paths as object_path
from pipeline.store.objects.paths import store_path
from pipeline.store.objects.verbs import locked, read_many, walk, write_atomic
from pipeline.store.records.commits import read_commits
from schemas.errors import InputError
from schemas.layout import Layout, StorePath
from tests.fixtures.figures import two_figures
from tests.fixtures.runs import DRAWN, extracted, run_file
from tests.fixtures.s3 import FaultyS3, dropped, dropped_after, failed_after, status
from tests.fixtures.store import build

pytestmark = pytest.mark.slow

CHANGING = (
    *("/commits/", "/plan.json", "manifest.parquet", "/events", "prediction.json"),
    *("tokens/.lock", "derived.json", ".svg"),
)
"""Hold times, attempts, or the place of the corpus; the rest must be equal."""


def bytes_of(root: StorePath) -> dict[str, bytes]:
    """Everything a store holds but what says when and by whom, by a path that names no attempt."""
    names = sorted(name for name, _, _ in walk(root) if not any(part in name for part in CHANGING))
    result = {}
    for name, data in zip(names, read_many([root / name for name in names]), strict=True):
        parts = name.split("/")
        result["/".join(parts[:4] + parts[5:] if "data" in parts[:3] else parts)] = data
    return result


def digests(root: StorePath) -> dict[str, tuple[object, ...]]:
    """What receipts say of the data."""
    receipts = read_commits(Layout(root), "mid")
    return {shard: (receipt.objects, receipt.tokens_sha256) for shard, receipt in receipts.items()}


def copied(folder: Path, url: str) -> StorePath:
    """A store on a folder, once more on object storage."""
    root = store_path(url)
    for name, _, _ in walk(folder):
        write_atomic(root / name, (folder / name).read_bytes())
    return root


def test_a_run_on_s3_gives_the_bytes_of_a_run_on_a_folder(
    s3: FaultyS3, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "s3://lake/some/prefix"
    with two_figures():
        run(run_file(tmp_path, derive=DRAWN))
        run(run_file(tmp_path, store={"root": url}, derive=DRAWN))
    here, there = store_path(str(tmp_path / "store")), store_path(url)
    expected = bytes_of(here)
    assert len(expected) > 40
    assert bytes_of(there) == expected
    assert digests(there) == digests(here)
    assert not [name for name, _, _ in walk(there) if "/." in name]  # no lock, nothing temporary

    requested = len(s3.requests)
    with two_figures():
        run(run_file(tmp_path, store={"root": url}, derive=DRAWN))  # nothing is left to do
    assert not any(method == "PUT" for method, _ in s3.requests[requested:])
    assert FeatureStore.open(url).verify().problems == []
    capsys.readouterr()
    for command in ("verify", "status", "top"):
        main_quietly([command, url, *(["3"] if command == "top" else [])])
        main_quietly([command, str(tmp_path / "store"), *(["3"] if command == "top" else [])])
    assert "everything agrees" in capsys.readouterr().out


def main_quietly(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (None, 0)


def test_queries_on_object_storage_answer_as_on_a_folder(s3: FaultyS3, tmp_path: Path) -> None:
    build(tmp_path, shards=3, commits=2)
    local = FeatureStore.open(tmp_path)
    stats(local, "site")
    expected = local.verify()
    for url in ("s3://lake/queries", "memory://queries"):
        store = FeatureStore.open(copied(tmp_path, url))
        assert store.scan_tokens().collect().equals(local.scan_tokens().collect(), null_equal=True)
        ask = pl.col("feature").is_in([3, 6])
        for name in ("scan_activations", "scan_features"):
            mine, theirs = (getattr(s, name)("site").filter(ask).collect() for s in (store, local))
            assert mine.height > 0
            assert mine.equals(theirs, null_equal=True)
        where = pl.col("party") == "red"
        mine, theirs = (s.contexts("site", 3, k=5, where=where, before=2, after=2) for s in (store, local))
        assert mine.height > 0
        assert mine.equals(theirs, null_equal=True)
        assert (store.csr("site", "000001") != local.csr("site", "000001")).nnz == 0
        assert store.tables("site") == local.tables("site")
        assert not store.is_stale("site", "features")
        result = store.verify()
        assert (result.objects, result.bytes, result.statistics) == (
            expected.objects,
            expected.bytes,
            expected.statistics,
        )


def test_a_run_through_faults_gives_the_same_bytes(
    s3: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_path, "_WAIT_S", 0.001)
    faults = [status(500), dropped_after, status(503, "SlowDown"), failed_after, dropped]

    def seventh(method: str, path: str) -> bool:
        return len(s3.requests) % 7 == 0

    s3.chosen, s3.faults = seventh, faults * 40
    extracted(run_file(tmp_path, store={"root": "s3://lake/faulty"}))
    assert len(s3.faults) < 40 * len(faults) - 20
    s3.faults = []
    extracted(run_file(tmp_path))
    here, there = store_path(str(tmp_path / "store")), store_path("s3://lake/faulty")
    assert bytes_of(there) == bytes_of(here)
    assert digests(there) == digests(here)


def test_a_failed_upload_fails_the_shard_and_commits_nothing(s3: FaultyS3, tmp_path: Path) -> None:
    run = run_file(tmp_path, store={"root": "s3://lake/denied"})
    s3.fail("PUT", "/postings.parquet", *[status(403, "AccessDenied")] * 99)
    with pytest.raises(InputError, match=r"postings\.parquet is forbidden"):
        extracted(run)
    layout = Layout(store_path("s3://lake/denied"))
    assert read_commits(layout, "mid") == {}
    assert not (layout.pass_folder("mid") / "data").exists()
    s3.faults = []
    assert len(extracted(run).receipts("mid")) == 5


@pytest.mark.ray
def test_workers_on_ray_write_to_s3_and_are_refused_memory(s3: FaultyS3, tmp_path: Path) -> None:
    executor = {"executor": "ray", "workers": 1}
    store = extracted(run_file(tmp_path, store={"root": "s3://lake/ray"}, extract=executor), tables=False)
    assert len(store.receipts("mid")) == 5
    with pytest.raises(InputError, match=r"memory://ray is in the memory of this process"):
        extracted(run_file(tmp_path, store={"root": "memory://ray"}, extract=executor))


def test_the_storage_is_listed_once_for_all_commits(s3: FaultyS3, tmp_path: Path) -> None:
    build(tmp_path, shards=5)
    root = copied(tmp_path, "s3://lake/listed")
    requested = len(s3.requests)
    assert len(read_commits(Layout(root), "p")) == 5
    lists = [path for _, path in s3.requests[requested:] if "list-type" in path]
    assert len(lists) == 1
    assert len(s3.requests) - requested == 1 + 5


def test_another_tokenize_is_refused_and_a_stale_lock_explained(s3: FaultyS3, tmp_path: Path) -> None:
    run = run_file(tmp_path, store={"root": "s3://lake/locked"})
    layout = Layout(store_path("s3://lake/locked"))
    with (
        locked(layout.tokenize_lock, "tokenize writes into s3://lake/locked"),
        pytest.raises(
            InputError, match=r"if it was killed, delete the object s3://lake/locked/tokens/\.lock"
        ),
    ):
        extracted(run)
    assert len(extracted(run, tables=False).shards) == 5


def test_events_come_back_from_parts(s3: FaultyS3) -> None:
    layout = Layout(store_path("s3://lake/events"))
    with EventLog(layout, "p", part_seconds=0.2) as log:
        log.log(event="ready")
        deadline = time.monotonic() + 10
        while not list(read_events(layout, "p")) and time.monotonic() < deadline:
            time.sleep(0.05)
        log.log(event="retry", shard="000001")
        log.log(event="committed", shard="000001")
    with EventLog(layout, "p") as log:
        log.log(event="ready")
    log.close()
    events = list(read_events(layout, "p"))
    assert [event["event"] for event in events] == ["ready", "retry", "committed", "ready"]
    assert len(list(layout.event_parts("p").iterdir())) == 3


def test_events_that_cannot_be_put_do_not_end_a_run(s3: FaultyS3) -> None:
    layout = Layout(store_path("s3://lake/deaf"))
    s3.fail("PUT", ".jsonl", status(403))
    log = EventLog(layout, "p", part_seconds=0.05)
    log.log(event="ready")
    deadline = time.monotonic() + 10
    while s3.faults and time.monotonic() < deadline:
        time.sleep(0.02)
    log.log(event="retry")
    log.close()
    assert [event["event"] for event in read_events(layout, "p")] == ["ready", "retry"]


def test_a_store_that_is_not_there_is_a_sentence(s3: FaultyS3, capsys: pytest.CaptureFixture[str]) -> None:
    for url, said in (
        ("s3://lake/nothing", "s3://lake/nothing is not a store"),
        ("s3://nowhere/x", "is in a bucket that does not exist"),
        ("ftp://lake/x", "ftp:// is not supported; known: s3"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["status", url])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_gc_on_object_storage_removes_what_nobody_will_read(s3: FaultyS3, tmp_path: Path) -> None:
    build(tmp_path, shards=2)
    root = copied(tmp_path, "s3://lake/gc")
    store = FeatureStore.open(root)
    before = {name for name, _, _ in walk(root)}
    layout = Layout(root)
    garbage = layout.attempt("p", "000001", "a" * 32) / "site" / "csr.zarr" / "zarr.json"
    write_atomic(garbage, b"left")
    write_atomic(root / f".self-test.{'b' * 32}.tmp", b"left")
    assert gc(store, 24, dry_run=False) == []  # both are young
    time.sleep(1.1)  # S3's times are whole seconds
    gone = gc(store, 0, dry_run=False, force=True)
    assert sorted(item.bytes for item in gone) == [4, 4]
    assert {name for name, _, _ in walk(root)} == before
