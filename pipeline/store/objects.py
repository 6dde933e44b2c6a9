"""Files that appear whole or not at all: put if absent, atomic replacement, checksums, a test of the storage.

A marker is put with `link(2)`, which exactly one of many racing writers wins, on POSIX file systems and NFS.
Names of temporary files start with a dot and end with `.tmp`; they lie beside their target, so that linking
and renaming never cross a file system.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from schemas.errors import InputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_SELF_TEST_ROUNDS = 3


def put_if_absent(path: Path, data: bytes) -> bool:
    """Write `path` unless it is there; True for the one writer that did, however many race.

    The data and the folder are on the disk when this returns. A full, read-only or forbidden disk is an
    InputError that names `path`.
    """
    with storage_errors(path):
        if path.exists():
            return False
        with _temporary_file(path, data) as temporary:
            won = _link(temporary, path)
        fsync_folder(path.parent)
        return won


def write_atomic(path: Path, data: bytes) -> None:
    """Write or replace `path` whole: a reader sees the old bytes or the new. Errors as `put_if_absent`."""
    with storage_errors(path), _temporary_file(path, data) as temporary:
        temporary.replace(path)
        fsync_folder(path.parent)


def publish_file(temporary: Path, path: Path) -> None:
    """Replace `path` by a finished file that lies in the same folder."""
    with storage_errors(path):
        _fsync(temporary)
        temporary.replace(path)
        fsync_folder(path.parent)


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A place to write a large file, which becomes `path` when the block ends well; else nothing is left."""
    temporary = temporary_path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            publish_file(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def open_input(path: Path) -> BinaryIO:
    """The file opened for reading at any place, for PyArrow; close it when done."""
    return path.open("rb")


def publish_folder(temporary: Path, path: Path) -> bool:
    """Give a finished folder its name; False (and the folder is left) when that is taken."""
    with storage_errors(path):
        fsync_tree(temporary)
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            return False
        fsync_folder(path.parent)
        return True


def temporary_path(path: Path) -> Path:
    """A name that nobody else uses, beside `path`."""
    return path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_tree(folder: Path) -> str:
    """sha256 of the sorted lines `<relative path> <sha256 of the file>`, each ended by a newline, in hex."""
    lines = [f"{file.relative_to(folder).as_posix()} {sha256_file(file)}\n" for file in _files(folder)]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def measure(path: Path) -> tuple[int, str]:
    """Bytes and sha256 of a file, or of a folder hashed as one."""
    if path.is_dir():
        return sum(file.stat().st_size for file in _files(path)), sha256_tree(path)
    return path.stat().st_size, sha256_file(path)


def fsync_tree(path: Path) -> None:
    """Bring a file, or a folder with everything below it, to the disk."""
    if path.is_file():
        _fsync(path)
    for parent, _, files in os.walk(path, topdown=False):
        for name in files:
            _fsync(Path(parent) / name)
        fsync_folder(Path(parent))


def fsync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk; file systems that can not are let be."""
    try:
        _fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise


def self_test(root: Path) -> None:
    """Race two puts below `root`; InputError when it can't be written, or lets both win, or neither."""
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    for _ in range(_SELF_TEST_ROUNDS):
        path = root / f".self-test.{uuid.uuid4().hex}.tmp"
        try:
            winners = _race(path)
            if len(winners) != 1 or path.read_bytes() != winners[0]:
                raise InputError(
                    f"the storage at {root} let {len(winners)} of two racing writers win, so commits are not "
                    "safe there; put store.root on a POSIX or NFS file system"
                )
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what a full, read-only or forbidden disk says into one sentence: `path`, and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise InputError(
                f"no space left to write {path}: free some space (or raise the quota), or set store.root "
                "elsewhere, then run again; what is committed stays"
            ) from error
        if error.errno in _FORBIDDEN:
            raise InputError(
                f"{path} can not be written ({os.strerror(error.errno or 0)}): allow writing there, or set "
                "store.root elsewhere"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise InputError(
                f"{path} can not be written: a part of its path is a file, not a folder; set store.root "
                "elsewhere"
            ) from error
        raise


@contextlib.contextmanager
def _temporary_file(path: Path, data: bytes) -> Iterator[Path]:
    """A synchronised file beside `path` that holds `data`, removed at the end if still there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        _write(temporary, data)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(temporary: Path, path: Path) -> bool:
    """Link, and believe the link count more than the answer: NFS may repeat a call that had succeeded."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if temporary.stat().st_nlink == 2:
            return True
        if error.errno == errno.EEXIST:
            return False
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise InputError(
                f"the storage at {path.parent} has no hard links, which commits need: put store.root on a "
                "POSIX or NFS file system"
            ) from error
        raise
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _race(path: Path) -> list[bytes]:
    """Put `path` from two threads at once; the contents of those that won."""
    winners: list[bytes] = []
    failures: list[BaseException] = []
    start = threading.Barrier(2)

    def put(data: bytes) -> None:
        start.wait()
        try:
            if put_if_absent(path, data):
                winners.append(data)
        except (InputError, OSError) as error:
            failures.append(error)

    threads = [threading.Thread(target=put, args=(data,)) for data in (b"one", b"two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return winners


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Tell of a missing or damaged file of the store in one sentence."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} is missing: restore it from a copy of the store") from None
    except Exception as error:  # noqa: BLE001 - pyarrow, Polars, Zarr and Blosc raise what they like
        raise InputError(
            f"{path} is damaged ({' '.join(str(error).split())[:120]}): run `latentlake verify`, and restore "
            "what it names from a copy of the store"
        ) from None
