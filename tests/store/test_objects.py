"""Files appear whole or not at all, whoever races and whatever the disk says."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from pipeline.store.objects import verbs as objects
from schemas.errors import InputError


def race(path: Path, contents: list[bytes]) -> list[bytes]:
    winners: list[bytes] = []
    start = threading.Barrier(len(contents))

    def put(data: bytes) -> None:
        start.wait()
        if objects.put_if_absent(path, data):
            winners.append(data)

    threads = [threading.Thread(target=put, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners


def test_exactly_one_of_eight_racing_writers_wins_and_its_bytes_stay(tmp_path: Path) -> None:
    for number in range(10):
        path = tmp_path / "commits" / f"{number}.json"
        winners = race(path, [f"writer {i}".encode() for i in range(8)])
        assert len(winners) == 1
        assert path.read_bytes() == winners[0]
    assert len(list((tmp_path / "commits").iterdir())) == 10  # no temporary file stays


def test_a_second_put_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert objects.put_if_absent(path, b"first")
    assert not objects.put_if_absent(path, b"second")
    assert path.read_bytes() == b"first"


def test_a_link_whose_answer_was_lost_counts_as_won(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def unsure(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(errno.EEXIST, "exists")  # what NFS says to a repeated call

    monkeypatch.setattr(os, "link", unsure)
    assert objects.put_if_absent(tmp_path / "a", b"ours")


def test_storage_without_hard_links_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unsupported)
    with pytest.raises(InputError, match="does not support hard links"):
        objects.put_if_absent(tmp_path / "a", b"x")


def test_atomic_writes_replace_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a"
    objects.write_atomic(path, b"a long first content")
    objects.write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert [p.name for p in path.parent.iterdir()] == ["a"]


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_sentence_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    path = tmp_path / "a"
    objects.write_atomic(path, b"old")

    def full(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(InputError, match=r"no space left to write .*/a: free some space"):
        objects.write_atomic(path, b"new")
    with pytest.raises(InputError, match="no space left"):
        objects.put_if_absent(tmp_path / "b", b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:3])))
    objects.write_atomic(tmp_path / "a", b"ten letters")
    assert (tmp_path / "a").read_bytes() == b"ten letters"


def test_a_read_only_disk_and_a_file_in_the_path_are_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="is a file, not a folder"):
        objects.put_if_absent(tmp_path / "file" / "a", b"x")

    def read_only(*args: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\)"):
        objects.self_test(tmp_path)


STRAYS = (
    *(".DS_Store", "._zarr.json", "Thumbs.db", "desktop.ini", ".nfs000000000a1b2c3d00000001", "zarr.json~"),
    *("data/.DS_Store", "data/c/._0", "data/c/.fuse_hidden0000000100000002", "data/c/0 (copy)", "data/c/00"),
    *(".snapshot/hourly/data/c/0", "@eaDir/zarr.json@SynoEAStream", "lost+found/c/0", "copy/zarr.json"),
)
"""What file managers and file systems leave in a folder."""


@pytest.mark.parametrize("strays", [(), STRAYS])
def test_checksums_of_files_and_folders_are_of_what_the_format_names(
    tmp_path: Path, strays: tuple[str, ...]
) -> None:
    group = tmp_path / "csr.zarr"
    for name, data in {"zarr.json": b"{}", "data/c/0": b"one", "data/c/10": b"two"}.items():
        (group / name).parent.mkdir(parents=True, exist_ok=True)
        (group / name).write_bytes(data)
    for name in strays:
        (group / name).parent.mkdir(parents=True, exist_ok=True)
        (group / name).write_bytes(b"stray")
    one, two, root = (hashlib.sha256(data).hexdigest() for data in (b"one", b"two", b"{}"))
    assert objects.measure(group / "data" / "c" / "0") == (3, one)
    folder = hashlib.sha256(f"data/c/0 {one}\ndata/c/10 {two}\nzarr.json {root}\n".encode()).hexdigest()
    assert objects.measure(group) == (8, folder)


def test_a_published_folder_keeps_the_first(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    assert objects.publish_folder(tmp_path / "one", tmp_path / "final")
    assert not objects.publish_folder(tmp_path / "two", tmp_path / "final")
    assert (tmp_path / "final" / "x").read_text() == "one"


def test_the_self_test_passes_here_and_leaves_nothing(tmp_path: Path) -> None:
    objects.self_test(tmp_path / "new" / "root")
    assert list((tmp_path / "new" / "root").iterdir()) == []


def test_the_self_test_refuses_storage_that_lets_both_writers_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def last_wins(path: Path, data: bytes) -> bool:
        path.write_bytes(data)
        return True

    monkeypatch.setattr(objects, "put_if_absent", last_wins)
    with pytest.raises(InputError, match="let 2 of two racing writers win"):
        objects.self_test(tmp_path)


def test_a_staged_folder_stays_when_all_went_well_and_goes_when_not(tmp_path: Path) -> None:
    def write(fail: bool) -> None:
        with objects.staged_folder(tmp_path / "data" / "000000" / "attempt") as folder:
            (folder / "x").write_bytes(b"x")
            if fail:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(fail=True)
    assert list((tmp_path / "data" / "000000").iterdir()) == []
    write(fail=False)
    assert (tmp_path / "data" / "000000" / "attempt" / "x").read_bytes() == b"x"


def test_a_staged_folder_is_on_the_disk_with_its_names_before_anybody_commits_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronised: list[str] = []
    fsync = os.fsync

    def remember(descriptor: int) -> None:
        synchronised.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", remember)
    attempt = tmp_path / "data" / "000000" / "attempt"
    with objects.staged_folder(attempt) as folder:
        (folder / "site").mkdir()
        (folder / "site" / "x").write_bytes(b"x")
    places = [attempt / "site" / "x", attempt / "site", attempt, attempt.parent, attempt.parent.parent]
    assert [str(place) for place in places] == synchronised[: len(places)]


@pytest.mark.parametrize("written_again", [False, True])
def test_a_staged_folder_that_was_removed_meanwhile_is_an_error(tmp_path: Path, written_again: bool) -> None:
    attempt = tmp_path / "data" / "000000" / "attempt"

    def write() -> None:
        with objects.staged_folder(attempt) as folder:
            (folder / "x").write_bytes(b"x")
            objects.remove_tree(attempt)
            if written_again:
                (folder / "site").mkdir(parents=True)

    with pytest.raises(FileNotFoundError):
        write()
    assert list(attempt.parent.iterdir()) == []
