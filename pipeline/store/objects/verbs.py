"""What is done to files and objects of a store: they appear whole or not at all, wherever the store lies.

The one module of verbs. Those that folders (POSIX, NFS) and object storage do each in their own way are in
`local` and `remote`; both modules are a `_Storage`, and `_storage` alone chooses between them.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar, cast

from pipeline.store.objects import local, remote
from pipeline.store.objects.paths import ObjectPath, RemoteError
from schemas.errors import InputError
from schemas.layout import StorePath, is_zarr_name
from schemas.records import Record
from schemas.storage_failures import storage_failure

_SELF_TEST_ROUNDS = 3
_HASHED_AT_ONCE = 1 << 24
PathT = TypeVar("PathT")
RecordT = TypeVar("RecordT", bound=Record)


class _Storage(Protocol[PathT]):
    """The verbs of one kind of storage, on paths of that kind; the functions below say what each does."""

    def put_if_absent(self, path: PathT, data: bytes, /) -> bool: ...
    def write_atomic(self, path: PathT, data: bytes, /) -> None: ...
    def staged(self, path: PathT, /) -> AbstractContextManager[Path]: ...
    def staged_folder(self, path: PathT, /) -> AbstractContextManager[Path]: ...
    def scratch_folder(self, path: PathT, /) -> AbstractContextManager[Path]: ...
    def publish_folder(self, temporary: Path, path: PathT, /) -> bool: ...
    def map_paths(self, read: Callable[[PathT], bytes], paths: Sequence[PathT], /) -> Iterator[bytes]: ...
    def walk(self, path: PathT, /) -> Iterator[tuple[str, int, float]]: ...
    def listed(self, folder: PathT, /) -> list[PathT]: ...
    def remove_tree(self, path: PathT, /) -> None: ...
    def locked(self, path: PathT, what: str, /) -> AbstractContextManager[None]: ...
    def is_locked(self, path: PathT, /) -> bool: ...


_LOCAL: _Storage[Path] = local
_REMOTE: _Storage[ObjectPath] = remote


def _storage(path: PathT) -> _Storage[PathT]:
    """The storage in which a path lies."""
    return cast("_Storage[PathT]", _LOCAL if isinstance(path, Path) else _REMOTE)


def put_if_absent(path: StorePath, data: bytes) -> bool:
    """Write `path` unless it is there; True for the one writer that did, however many race.

    The data and the folder are on the disk when this returns. A full, read-only or forbidden place is an
    InputError that names `path`; storage that does not answer, after several tries, an OSError.
    """
    return _storage(path).put_if_absent(path, data)


def write_atomic(path: StorePath, data: bytes) -> None:
    """Write or replace `path` whole: a reader sees the old bytes or the new. Errors as `put_if_absent`."""
    _storage(path).write_atomic(path, data)


def staged(path: StorePath) -> AbstractContextManager[Path]:
    """A place to write one large file, which becomes `path` when the block ends well; else nothing stays."""
    return _storage(path).staged(path)


def staged_folder(path: StorePath) -> AbstractContextManager[Path]:
    """A place to write the files of a folder that nobody else writes, and nobody reads before it is named.

    They lie below `path`, for good, when the block ends well; else nothing is left.
    """
    return _storage(path).staged_folder(path)


def scratch_folder(path: StorePath) -> AbstractContextManager[Path]:
    """A folder to make what `publish_folder` then gives the name `path`; gone at the end of the block."""
    return _storage(path).scratch_folder(path)


def publish_folder(temporary: Path, path: StorePath) -> bool:
    """Give a finished Zarr group its name; False (and the folder is left) when that is taken."""
    return _storage(path).publish_folder(temporary, path)


def read_many(paths: Sequence[StorePath]) -> Iterator[bytes]:
    """The bytes of many small files, in order; object storage gets several requests at once."""
    return _storage(paths[0]).map_paths(read_bytes, paths) if paths else iter(())


def walk(path: StorePath) -> Iterator[tuple[str, int, float]]:
    """Every file below: its path from here, its bytes, and when it was last written (Unix seconds)."""
    return _storage(path).walk(path)


def remove(path: StorePath) -> None:
    """Remove a file, if it is there."""
    path.unlink(missing_ok=True)


def remove_tree(path: StorePath) -> None:
    """Remove a folder as far as possible; what stays is for `latentlake gc`."""
    _storage(path).remove_tree(path)


def locked(path: StorePath, what: str) -> AbstractContextManager[None]:
    """Hold a lock while the block runs; InputError "another {what} …" when somebody else holds it."""
    return _storage(path).locked(path, what)


def is_locked(path: StorePath) -> bool:
    """Whether somebody holds the lock; on object storage it may be one who was killed."""
    return _storage(path).is_locked(path)


def sha256_file(path: StorePath) -> str:
    """sha256 of a file's bytes, in hex."""
    return _measure_file(path)[1]


def measure(path: StorePath) -> tuple[int, str]:
    """Bytes and sha256 of a file, or of a folder hashed as one.

    That is the sha256 of the sorted lines `<relative path> <sha256 of the file>`, each ended by a newline, of
    the files that Zarr has there: what a file manager or a file system leaves next to them does not count.
    """
    with system_readable(path):
        if path.is_file():
            return _measure_file(path)
        files = sorted((name, size) for name, size, _ in walk(path) if is_zarr_name(name, path.name))
    lines = "".join(f"{name} {sha256_file(path / name)}\n" for name, _ in files)
    return sum(size for _, size in files), hashlib.sha256(lines.encode()).hexdigest()


def _measure_file(path: StorePath) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with system_readable(path), path.open("rb") as file:
        while data := file.read(_HASHED_AT_ONCE):
            digest.update(data)
            size += len(data)
    return size, digest.hexdigest()


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
                    "supports conditional puts"
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
        raise InputError(f"{path} is a folder where a file should be: move it away") from None
    except OSError as error:
        raise storage_failure(error, path, "read") or error from None


def read_bytes(path: StorePath) -> bytes:
    """A small file whole; FileNotFoundError or NotADirectoryError where there is none."""
    with system_readable(path):
        return path.read_bytes()


def read_record(record: type[RecordT], path: StorePath) -> RecordT | None:
    """The JSON record at `path`; None where there is none, InputError for one that is damaged or newer."""
    try:
        return record.from_json(read_bytes(path), str(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def listed(folder: StorePath) -> list[StorePath]:
    """What lies just below a folder, in no order; nothing where there is no folder.

    One that may not be listed is an InputError: it is not empty.
    """
    with system_readable(folder):
        return _storage(folder).listed(folder)


def _damaged(path: StorePath, error: Exception, remedy: str) -> InputError:
    return InputError(f"{path} is damaged ({' '.join(str(error).split())[:120]}): {remedy}")


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
