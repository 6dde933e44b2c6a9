"""The verbs on object storage: whole or not at all, one winner, whatever the storage answers."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from pipeline.store.objects import paths as object_path
from pipeline.store.objects import remote
from pipeline.store.objects import verbs as objects
from pipeline.store.objects.paths import RemoteError, forget_clients, store_path
from schemas.errors import InputError
from schemas.layout import StorePath
from tests.fixtures.s3 import FaultyS3, cut_short, dropped, dropped_after, failed_after, slow, status, use


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No long waits between tries."""
    monkeypatch.setattr(object_path, "_WAIT_S", 0.001)


@pytest.fixture
def root(s3: FaultyS3, quick: None, request: pytest.FixtureRequest) -> StorePath:
    return store_path(f"s3://lake/{abs(hash(request.node.name))}")


def race(path: StorePath, writers: int) -> list[bytes]:
    winners: list[bytes] = []
    start = threading.Barrier(writers)

    def put(data: bytes) -> None:
        start.wait()
        if objects.put_if_absent(path, data):
            winners.append(data)

    threads = [threading.Thread(target=put, args=(f"writer {i}".encode(),)) for i in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners


@pytest.mark.parametrize("url", ["s3://lake/race", "memory://race"])
def test_exactly_one_of_eight_racing_writers_wins_and_its_bytes_stay(s3: FaultyS3, url: str) -> None:
    for number in range(5):
        path = store_path(url) / "commits" / f"{number}.json"
        winners = race(path, 8)
        assert len(winners) == 1
        assert path.read_bytes() == winners[0]


def test_racing_writers_that_come_first_share_one_memory() -> None:
    for number in range(20):
        assert len(race(store_path(f"memory://first-{number}") / "a", 8)) == 1


def test_one_of_racing_writers_wins_while_answers_are_lost(root: StorePath, s3: FaultyS3) -> None:
    s3.fail("PUT", "/a", dropped_after, status(500), failed_after, status(409), dropped, dropped_after)
    winners = race(root / "a", 8)
    assert len(winners) == 1
    assert (root / "a").read_bytes() == winners[0]
    assert s3.faults == []


@pytest.mark.parametrize(
    "fault",
    [dropped, dropped_after, failed_after, status(500), status(503, "SlowDown"), status(409, "Conflict")],
)
def test_a_put_wins_through_a_fault(root: StorePath, s3: FaultyS3, fault: object) -> None:
    s3.fail("PUT", "/a", fault, fault)  # type: ignore[arg-type]
    assert objects.put_if_absent(root / "a", b"ours")
    assert (root / "a").read_bytes() == b"ours"
    assert not objects.put_if_absent(root / "a", b"theirs")


def test_a_lost_put_is_reported_from_ones_own_whose_answer_was_lost(root: StorePath, s3: FaultyS3) -> None:
    objects.write_atomic(root / "a", b"theirs")
    for fault in (dropped_after, status(500), status(409)):
        s3.fail("PUT", "/a", fault)
        assert not objects.put_if_absent(root / "a", b"ours")
    assert not objects.put_if_absent(root / "a", b"theirs")  # equal bytes, but put by somebody else
    assert (root / "a").read_bytes() == b"theirs"


def test_a_412_is_the_answer_and_is_not_requested_again(root: StorePath, s3: FaultyS3) -> None:
    s3.fail("PUT", "/a", status(412, "PreconditionFailed"))
    assert not objects.put_if_absent(root / "a", b"ours")
    assert s3.count("PUT", "/a") == 1


@pytest.mark.parametrize("done", [True, False])
def test_a_put_that_hangs_is_looked_after(
    s3: FaultyS3, quick: None, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    use(monkeypatch, s3.port, timeout="300ms")
    forget_clients()
    root = store_path(f"s3://lake/hangs-{done}")
    s3.fail("PUT", "/a", slow(1, done=done))
    assert objects.put_if_absent(root / "a", b"ours")
    assert (root / "a").read_bytes() == b"ours"
    assert s3.count("PUT", "/a") == (1 if done else 2)


def test_slow_answers_are_waited_for(root: StorePath, s3: FaultyS3) -> None:
    s3.fail("PUT", "/a", slow(0.3))
    assert objects.put_if_absent(root / "a", b"ours")
    s3.fail("GET", "/a", slow(0.3))
    assert (root / "a").read_bytes() == b"ours"


def test_storage_that_never_answers_is_an_error_with_its_place(root: StorePath, s3: FaultyS3) -> None:
    s3.fail("PUT", "/a", *[status(500)] * 99)
    with pytest.raises(RemoteError, match=r"object storage failed .*/a"):
        objects.put_if_absent(root / "a", b"ours")
    s3.fail("PUT", "/b", *[status(409)] * 99)
    with pytest.raises(RemoteError):
        objects.write_atomic(root / "b", b"ours")


def test_a_forbidden_put_is_a_sentence_at_once(root: StorePath, s3: FaultyS3) -> None:
    s3.fail("PUT", "/a", status(403, "AccessDenied"))
    with pytest.raises(InputError, match=r"/a is forbidden \(AccessDenied\)"):
        objects.put_if_absent(root / "a", b"ours")
    assert s3.count("PUT", "/a") == 1


def test_reads_and_writes_go_on_after_faults(root: StorePath, s3: FaultyS3) -> None:
    s3.fail("PUT", "/a", status(409), status(500), dropped_after)
    objects.write_atomic(root / "a", b"whole")
    s3.fail("GET", "/a", status(500), dropped, cut_short)
    assert (root / "a").read_bytes() == b"whole"
    s3.fail("GET", "/a", *[cut_short] * 99)
    with pytest.raises(RemoteError):
        (root / "a").read_bytes()


def test_a_large_file_is_uploaded_in_parts_and_appears_whole(
    root: StorePath, s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PART", 5 << 20)  # S3's least
    data = bytes(range(256)) * (12 << 12)
    s3.fail("PUT", "/large", status(500))
    with objects.staged(root / "large") as file:
        file.write_bytes(data)
        assert not (root / "large").exists()
    assert not file.exists()
    assert objects.measure(root / "large") == objects.measure(_written(file, data))
    assert s3.count("POST", "/large") == 2  # begun and completed
    file.unlink()


def _written(file: Path, data: bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def test_an_error_while_staging_leaves_nothing(root: StorePath) -> None:
    files = []

    def stage() -> None:
        with objects.staged(root / "x") as file:
            files.append(_written(file, b"half"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stage()
    assert not root.exists()
    assert not files[0].parent.exists()


def test_a_staged_folder_is_uploaded_with_the_checksums_it_had(root: StorePath) -> None:
    with objects.staged_folder(root / "attempt") as folder:
        for name in ("1", "b/2", "b/c/3"):
            _written(folder / name, name.encode() * 1000)
        here = objects.measure(folder)
        assert not root.exists()
    assert not folder.exists()
    assert objects.measure(root / "attempt") == here


def test_a_failed_upload_is_raised_and_leaves_nothing(root: StorePath, s3: FaultyS3) -> None:
    s3.fail("PUT", "/b", status(403, "AccessDenied"))
    folders = []

    def write() -> None:
        with objects.staged_folder(root / "attempt") as folder:
            folders.append(folder)
            for name in "abc":
                _written(folder / name, b"x")

    with pytest.raises(InputError, match="attempt/b is forbidden"):
        write()
    assert not root.exists()
    assert not folders[0].exists()


def test_a_published_folder_keeps_the_first_and_counts_when_its_root_is_there(
    root: StorePath, s3: FaultyS3, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        _written(tmp_path / name / "x" / "0", name.encode())
        _written(tmp_path / name / "zarr.json", name.encode())
    s3.fail("PUT", "/zarr.json", status(403))
    with pytest.raises(InputError):
        objects.publish_folder(tmp_path / "one", root / "final")
    assert not (root / "final" / "zarr.json").exists()
    assert objects.publish_folder(tmp_path / "one", root / "final")
    assert not objects.publish_folder(tmp_path / "two", root / "final")
    assert (root / "final" / "x" / "0").read_bytes() == b"one"


def test_a_file_is_read_at_any_place_by_ranges(root: StorePath, s3: FaultyS3) -> None:
    data = bytes(range(256)) * 10_000
    objects.write_atomic(root / "a", data)
    with (root / "a").open("rb") as file:
        assert file.seek(-6, 2) == len(data) - 6
        assert file.read() == data[-6:]
        file.seek(1000)
        assert file.read(5) == data[1000:1005]
        assert file.read(3) == data[1005:1008]
        assert s3.count("GET", "/a") == 2
    with pytest.raises(FileNotFoundError):
        (root / "none").open("rb")


def test_many_are_read_at_once_in_order(root: StorePath) -> None:
    paths = [root / f"{number}" for number in range(50)]
    for path in paths:
        objects.write_atomic(path, path.name.encode())
    assert list(objects.read_many(paths)) == [str(number).encode() for number in range(50)]


def test_the_self_test_passes_and_leaves_nothing(root: StorePath) -> None:
    objects.self_test(root)
    assert not root.exists()


def test_the_self_test_refuses_storage_that_ignores_the_condition(root: StorePath, s3: FaultyS3) -> None:
    def heedless(request: object) -> bool:
        del request.headers["If-None-Match"]  # type: ignore[attr-defined]
        return False

    s3.chosen, s3.faults = lambda method, path: method == "PUT", [heedless] * 99
    with pytest.raises(InputError, match=r"let 2 of two racing writers win.*conditional puts"):
        objects.self_test(root)
    assert not root.exists()


def test_storage_set_up_without_conditional_puts_is_refused(
    s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    forget_clients()
    with pytest.raises(InputError, match="AWS_CONDITIONAL_PUT: etag"):
        objects.self_test(store_path("s3://lake/unconditional"))


def test_a_lock_is_held_by_one_and_goes_with_the_block(root: StorePath) -> None:
    lock = root / "tokens" / ".lock"
    with objects.locked(lock, "tokenize writes into x"):
        assert json.loads(lock.read_bytes())["who"]
        with (
            pytest.raises(InputError, match=r"another tokenize writes into x \(.*process \d+, .*delete"),
            objects.locked(lock, "tokenize writes into x"),
        ):
            pass
    assert not lock.exists()
    with pytest.raises(ZeroDivisionError), objects.locked(lock, "x"):
        raise ZeroDivisionError
    assert not lock.exists()


def test_scratch_of_a_dead_process_is_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, young = tmp_path / "latentlake-scratch-dead", tmp_path / "latentlake-scratch-young"
    for folder in (dead, young):
        _written(folder / ".lock", b"")
    os.utime(dead / ".lock", (0, 0))
    with objects.scratch_folder(store_path("memory://sweep")) as mine:
        os.utime(mine.parent / ".lock", (0, 0))
        with objects.scratch_folder(store_path("memory://sweep")):
            assert mine.exists()  # old, but somebody holds its lock
        assert not dead.exists()
        assert young.exists()


@pytest.mark.parametrize("verb", [objects.staged, objects.staged_folder])
def test_a_full_scratch_folder_is_one_sentence_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: object
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(InputError, match=rf"no space left to write {tmp_path}: .* or set TMPDIR"),
        verb(store_path("memory://full") / "a"),  # type: ignore[operator]
    ):
        raise full
