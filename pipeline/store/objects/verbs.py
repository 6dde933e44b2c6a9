"""What is done to files and objects of a store: they appear whole or not at all, wherever the store lies.

The one module of verbs: `local` has them for folders (POSIX, NFS), `remote` for object storage.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from pipeline.store.objects import local, remote
from pipeline.store.objects.paths import ObjectPath, RemoteError
from schemas.errors import InputError
from schemas.layout import StorePath, is_zarr_name
from schemas.storage_failures import storage_failure

_SELF_TEST_ROUNDS = 3
_HASHED_AT_ONCE = 1 << 24


def put_if_absent(path: StorePath, data: bytes) -> bool:
    """Write `path` unless it is there; True for the one writer that did, however many race.

    The data and the folder are on the disk when this returns. A full, read-only or forbidden place is an
    InputError that names `path`; storage that does not answer, after several tries, an OSError.
    """
    return (
        local.put_if_absent(path, data) if isinstance(path, Path) else remote.put_if_absent(_of(path), data)
    )


def write_atomic(path: StorePath, data: bytes) -> None:
    """Write or replace `path` whole: a reader sees the old bytes or the new. Errors as `put_if_absent`."""
    local.write_atomic(path, data) if isinstance(path, Path) else remote.write_atomic(_of(path), data)


def staged(path: StorePath) -> AbstractContextManager[Path]:
    """A place to write one large file, which becomes `path` when the block ends well; else nothing stays."""
    return local.staged(path) if isinstance(path, Path) else remote.staged(_of(path))


def staged_folder(path: StorePath) -> AbstractContextManager[Path]:
    """A place to write the files of a folder that nobody else writes, and nobody reads before it is named.

    They lie below `path`, for good, when the block ends well; else nothing is left.
    """
    return local.staged_folder(path) if isinstance(path, Path) else remote.staged_folder(_of(path))


def scratch_folder(path: StorePath) -> AbstractContextManager[Path]:
    """A folder to make what `publish_folder` then gives the name `path`; gone at the end of the block."""
    return local.scratch_folder(path) if isinstance(path, Path) else remote.scratch_folder()


def publish_folder(temporary: Path, path: StorePath) -> bool:
    """Give a finished Zarr group its name; False (and the folder is left) when that is taken."""
    if isinstance(path, Path):
        return local.publish_folder(temporary, path)
    return remote.publish_folder(temporary, _of(path))


def open_input(path: StorePath) -> BinaryIO:
    """The file opened for reading at any place, for PyArrow; close it when done."""
    return path.open("rb") if isinstance(path, Path) else remote.open_input(_of(path))


def read_many(paths: Sequence[StorePath]) -> Iterator[bytes]:
    """The bytes of many small files, in order; object storage gets several requests at once."""
    if any(isinstance(path, Path) for path in paths):
        return (read_bytes(path) for path in paths)
    return remote.read_many([_of(path) for path in paths])


def walk(path: StorePath) -> Iterator[tuple[str, int, float]]:
    """Every file below: its path from here, its bytes, and when it was last written (Unix seconds)."""
    return local.walk(path) if isinstance(path, Path) else remote.walk(_of(path))


def remove(path: StorePath) -> None:
    """Remove a file, if it is there."""
    path.unlink(missing_ok=True) if isinstance(path, Path) else remote.remove(_of(path))


def remove_tree(path: StorePath) -> None:
    """Remove a folder as far as possible; what stays is for `latentlake gc`."""
    local.remove_tree(path) if isinstance(path, Path) else remote.remove_tree(_of(path))


def locked(path: StorePath, what: str) -> AbstractContextManager[None]:
    """Hold a lock while the block runs; InputError "another {what} …" when somebody else holds it."""
    return local.locked(path, what) if isinstance(path, Path) else remote.locked(_of(path), what)


def is_locked(path: StorePath) -> bool:
    """Whether somebody holds the lock; on object storage it may be one who was killed."""
    return local.is_locked(path) if isinstance(path, Path) else path.is_file()


def sha256_file(path: StorePath) -> str:
    """sha256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with system_readable(path), open_input(path) as file:
        while data := file.read(_HASHED_AT_ONCE):
            digest.update(data)
    return digest.hexdigest()


def measure(path: StorePath) -> tuple[int, str]:
    """Bytes and sha256 of a file, or of a folder hashed as one.

    That is the sha256 of the sorted lines `<relative path> <sha256 of the file>`, each ended by a newline, of
    the files that Zarr has there: what a file manager or a file system leaves next to them does not count.
    """
    with system_readable(path):
        if path.is_file():
            return _size(path), sha256_file(path)
        files = sorted((name, size) for name, size, _ in walk(path) if is_zarr_name(name, path.name))
    lines = "".join(f"{name} {sha256_file(path / name)}\n" for name, _ in files)
    return sum(size for _, size in files), hashlib.sha256(lines.encode()).hexdigest()


def self_test(root: StorePath) -> None:
    """Race two puts below `root`; InputError when it can't be written, or lets both win, or neither."""
    for _ in range(_SELF_TEST_ROUNDS):
        path = root / f".self-test.{uuid.uuid4().hex}.tmp"
        try:
            winners = _race(path)
            if len(winners) != 1 or path.read_bytes() != winners[0]:
                raise InputError(
                    f"the storage at {root} let {len(winners)} of two racing writers win, so commits are not "
                    "safe there; put store.root on a POSIX or NFS file system, or on object storage that "
                    "knows conditional puts"
                )
        finally:
            remove(path)


RESTORE = "run `latentlake verify`, and restore what it names from a copy of the store"
"""What helps where an object of a store is damaged."""


@contextlib.contextmanager
def readable(path: StorePath, remedy: str = RESTORE) -> Iterator[None]:
    """Report a missing or damaged file in one sentence; what the system refuses is not damage."""
    try:
        yield
    except (InputError, RemoteError):
        raise
    except FileNotFoundError:
        raise InputError(f"{path} is missing: restore it from a copy of the store") from None
    except Exception as error:  # noqa: BLE001 - pyarrow, Polars, Zarr and Blosc raise what they like
        raise (storage_failure(error, path, "read") or _damaged(path, error, remedy)) from None


@contextlib.contextmanager
def system_readable(path: StorePath) -> Iterator[None]:
    """The same, but what is missing stays FileNotFoundError or NotADirectoryError, for whoever knows why."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, RemoteError):
        raise
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, where a file should be: move it away") from None
    except OSError as error:
        raise storage_failure(error, path, "read") or error from None


def read_bytes(path: StorePath) -> bytes:
    """A small file whole; FileNotFoundError or NotADirectoryError where there is none."""
    with system_readable(path):
        return path.read_bytes()


def listed(folder: StorePath) -> list[StorePath]:
    """What lies just below a folder, in no order; nothing where there is no folder.

    One that may not be listed is an InputError: it is not empty.
    """
    with system_readable(folder):
        return list(local.listed(folder) if isinstance(folder, Path) else folder.iterdir())


def _damaged(path: StorePath, error: Exception, remedy: str) -> InputError:
    return InputError(f"{path} is damaged ({' '.join(str(error).split())[:120]}): {remedy}")


def _of(path: StorePath) -> ObjectPath:
    assert isinstance(path, ObjectPath)
    return path


def _size(path: StorePath) -> int:
    return path.stat().st_size if isinstance(path, Path) else _of(path).size() or 0


def _race(path: StorePath) -> list[bytes]:
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
