"""The verbs that POSIX file systems and NFS do in their own way.

A marker is put with `link(2)`, which exactly one of many racing writers wins. Names of temporary files start
with a dot and end with `.tmp`; they lie next to their target, so that linking and renaming never cross a file
system.
"""

from __future__ import annotations

import contextlib
import contextvars
import errno
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.store.objects.locks import flock, held_by_file
from schemas.errors import InputError
from schemas.storage_failures import storage_failure

STORE_REMEDY = "set store.root elsewhere"
"""Of a disk that cannot be written."""
TMPDIR_REMEDY = "set TMPDIR to a folder on a larger disk"
_REMEDY = contextvars.ContextVar("remedy", default=STORE_REMEDY)


@contextlib.contextmanager
def remedy_for_writes(remedy: str) -> Iterator[None]:
    """What a write within the block names as its remedy where it fails and has none of its own."""
    outer = _REMEDY.set(remedy)
    try:
        yield
    finally:
        _REMEDY.reset(outer)


def writing_threads(n: int, name: str = "") -> ThreadPoolExecutor:
    """Threads whose writes have the remedy of the block in which they are made."""
    return ThreadPoolExecutor(n, name, initializer=_REMEDY.set, initargs=(_REMEDY.get(),))


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


def write_atomic(path: Path, data: bytes, remedy: str | None = None) -> None:
    """Write or replace `path` whole: a reader sees the old bytes or the new. Errors as `put_if_absent`."""
    with storage_errors(path, remedy), _temporary_file(path, data) as temporary:
        temporary.replace(path)
        fsync_folder(path.parent)


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """See `objects.staged`."""
    temporary = temporary_path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _fsync(temporary)
            temporary.replace(path)
            fsync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """See `objects.staged_folder`: here it is the folder itself, and all names above it up to three."""
    with storage_errors(path):
        path.mkdir(parents=True)
        try:
            with _same_folder(path):
                yield path
                fsync_tree(path)
            for parent in list(path.parents)[:3]:
                fsync_folder(parent)
        except BaseException:  # nobody will name the folder, and a full disk wants its space back
            shutil.rmtree(path, ignore_errors=True)
            raise


@contextlib.contextmanager
def _same_folder(path: Path) -> Iterator[None]:
    """FileNotFoundError when, at the end, `path` is gone, or another folder made after it was removed."""
    descriptor = os.open(path, os.O_RDONLY)  # held open, so that its inode number is not given anew
    try:
        yield
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(errno.ENOENT, "the folder was removed while it was written", str(path))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """See `objects.scratch_folder`: here it lies next to `path`."""
    temporary = temporary_path(path)
    with storage_errors(path):
        temporary.mkdir(parents=True)
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def local_scratch(prefix: str) -> Iterator[Path]:
    """A folder of this machine ($TMPDIR), gone at the end; a full or forbidden disk is an InputError."""
    with (
        storage_errors(Path(tempfile.gettempdir()), TMPDIR_REMEDY),
        tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder,
    ):
        yield Path(folder)


def publish_folder(temporary: Path, path: Path) -> bool:
    """See `objects.publish_folder`."""
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
    """A name that nobody else uses, next to `path`."""
    return path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"


def remove_tree(path: Path) -> None:
    """See `objects.remove_tree`: it goes at once, so that who still writes into it finds it gone."""
    trash = temporary_path(path)
    try:
        path.rename(trash)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)
        return
    shutil.rmtree(trash, ignore_errors=True)
    if trash.exists():
        with contextlib.suppress(OSError):
            trash.rename(path)


def walk(path: Path) -> Iterator[tuple[str, int, float]]:
    """See `objects.walk`; files and folders that go away meanwhile are left out, others must be readable."""
    for parent, _, names in os.walk(path, onerror=_raise_unless_missing):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                file = Path(parent) / name
                about = file.stat()
                yield file.relative_to(path).as_posix(), about.st_size, about.st_mtime


def _raise_unless_missing(error: OSError) -> None:
    """A folder that cannot be listed is not an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise error


def map_paths(read: Callable[[Path], bytes], paths: Sequence[Path]) -> Iterator[bytes]:
    """See `objects.read_many`: one after another."""
    return map(read, paths)


def listed(folder: Path) -> list[Path]:
    """See `objects.listed`."""
    try:
        return [folder / name for name in os.listdir(folder)]  # noqa: PTH208 - iterdir opens late
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """See `objects.locked`: here the lock ends with the process.

    Where the file system has no such locks (Lustre, some NFS) a file is put, as on object storage.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
    with file:
        try:
            held: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if not flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
                held = held_by_file(_holder(path), what, put_if_absent)
        except BlockingIOError:
            raise InputError(f"another {what}: wait for it, and run again") from None
        except OSError as error:
            raise storage_failure(error, path, "written", _REMEDY.get()) or error from None
        with held:
            yield


def is_locked(path: Path) -> bool:
    """See `objects.is_locked`."""
    try:
        with path.open("rb") as file:
            return not flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB) and _holder(path).exists()
    except BlockingIOError:
        return True
    except OSError:  # there is none, or it may not be read
        return False


def _holder(path: Path) -> Path:
    """Next to a lock, the file that stands for it where the file system has no locks."""
    return path.with_name(f"{path.name}.held")


def fsync_tree(path: Path) -> None:
    """Bring a file, or a folder with everything below it, to the disk."""
    if path.is_file():
        _fsync(path)
    for parent, _, files in os.walk(path, topdown=False):
        for name in files:
            _fsync(Path(parent) / name)
        fsync_folder(Path(parent))


def fsync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk; file systems that cannot are let be."""
    try:
        _fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise


@contextlib.contextmanager
def storage_errors(path: Path, remedy: str | None = None) -> Iterator[None]:
    """Turn the system's error of a write to `path` into one sentence with the remedy for its kind.

    `remedy` holds for the writes within, too; by default it is that of the block around.
    """
    own = contextlib.nullcontext() if remedy is None else remedy_for_writes(remedy)
    remedy = remedy or _REMEDY.get()
    try:
        with own:
            yield
    except InputError:
        raise
    except OSError as error:
        if (failure := storage_failure(error, path, "written", remedy)) is not None:
            raise failure from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise InputError(
                f"{path} cannot be written: a part of its path is a file, not a folder; {remedy}"
            ) from error
        if error.errno in (errno.EISDIR, errno.ENOTEMPTY):
            raise InputError(
                f"{path} cannot be written: it is a folder, not a file; move it away, or {remedy}"
            ) from error
        if error.filename is None and error.errno is not None:
            raise InputError(
                f"{path} cannot be written ({os.strerror(error.errno)}): free or fix it and run again"
            ) from error
        raise
    except Exception as error:  # Polars and others give the system's error as text
        if (failure := storage_failure(error, path, "written", remedy)) is not None:
            raise failure from error
        raise


@contextlib.contextmanager
def _temporary_file(path: Path, data: bytes) -> Iterator[Path]:
    """A synchronised file next to `path` that holds `data`, removed at the end if still there."""
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
                f"the storage at {path.parent} does not support hard links, which commits need: put "
                "store.root on a POSIX or NFS file system"
            ) from error
        raise
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
