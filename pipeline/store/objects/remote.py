"""The verbs that object storage does in its own way, over obstore.

Folders are made here, in scratch, then uploaded.

An object is there whole or not at all. A marker is put with the condition that nothing has its name (HTTP:
`If-None-Match: *`, or what Google and Azure call it), which one of many racing writers wins.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import obstore

from pipeline.store.objects.local import TMPDIR_REMEDY, storage_errors
from pipeline.store.objects.locks import flock, held_by_file
from pipeline.store.objects.paths import ConflictError, ObjectPath, RemoteError, client, remote_errors, tries
from schemas.errors import InputError
from schemas.layout import ZARR_METADATA

_PART = 1 << 23
"""Bytes of one part of an upload: 10,000 parts are S3's most, 78 GiB an object."""
_UPLOADS, _PARTS_AT_ONCE, _DOWNLOADS = 4, 4, 32
"""Objects, and parts of each, on their way at once: 128 MiB at most, for which a request has 30 s."""
_SCRATCH = "latentlake-scratch-"


def put_if_absent(path: ObjectPath, data: bytes) -> bool:
    """See `objects.put_if_absent`. Of writers with equal bytes several may learn that they won.

    That is so when an answer was lost (a timeout, a dropped connection, 5xx): then the object is read, and is
    ours when it holds our bytes. obstore may not repeat this request by itself: it would meet its own object.
    """
    once, unsure = client(path.url, retries=False), False
    error: RemoteError | None = None
    for _ in tries():
        try:
            with remote_errors(path):
                obstore.put(once, path.key, data, mode="create", use_multipart=False)
        except FileExistsError:
            if not unsure:
                return False
        except ConflictError as conflict:  # somebody writes it at this moment: ours was not taken
            error = conflict
            continue
        except RemoteError as lost:
            unsure, error = True, lost
        else:
            return True
        with contextlib.suppress(RemoteError, FileNotFoundError):
            return path.read_bytes() == data
    assert error is not None
    raise error


def write_atomic(path: ObjectPath, data: bytes) -> None:
    """See `objects.write_atomic`."""
    _put(path, data)


@contextlib.contextmanager
def staged(path: ObjectPath) -> Iterator[Path]:
    """See `objects.staged`."""
    with scratch_folder(path) as folder:
        yield folder / path.name
        _put(path, folder / path.name)


@contextlib.contextmanager
def staged_folder(path: ObjectPath) -> Iterator[Path]:
    """See `objects.staged_folder`."""
    with scratch_folder(path) as folder:
        yield folder
        try:
            _upload(folder, path, _files(folder))
        except BaseException:
            remove_tree(path)
            raise


def publish_folder(folder: Path, path: ObjectPath) -> bool:
    """See `objects.publish_folder`: a Zarr group, which is there once its zarr.json is, put last."""
    marker = path / ZARR_METADATA
    if marker.is_file():
        return False
    _upload(folder, path, [name for name in _files(folder) if name != ZARR_METADATA])
    return put_if_absent(marker, (folder / ZARR_METADATA).read_bytes())


def map_paths(read: Callable[[ObjectPath], bytes], paths: Sequence[ObjectPath]) -> Iterator[bytes]:
    """See `objects.read_many`: several at once."""
    with ThreadPoolExecutor(_DOWNLOADS) as threads:
        yield from threads.map(read, paths)


def walk(path: ObjectPath) -> Iterator[tuple[str, int, float]]:
    """See `objects.walk`; the storage's clock."""
    below = len(path.key) + 1 if path.key else 0
    with remote_errors(path):
        for batch in obstore.list(path.client, prefix=path.key or None):
            for entry in batch:
                yield entry["path"][below:], entry["size"], entry["last_modified"].timestamp()


def listed(folder: ObjectPath) -> list[ObjectPath]:
    """See `objects.listed`."""
    return list(folder.iterdir())


def remove_tree(path: ObjectPath) -> None:
    """See `objects.remove_tree`."""
    with contextlib.suppress(RemoteError, InputError, FileNotFoundError), remote_errors(path):
        keys = [f"{path.key}/{name}" for name, _, _ in walk(path)]
        if keys:
            obstore.delete(path.client, keys)


@contextlib.contextmanager
def locked(path: ObjectPath, what: str) -> Iterator[None]:
    """See `objects.locked`: here an object, which a process that is killed leaves behind."""
    with held_by_file(path, what, put_if_absent):
        yield


def is_locked(path: ObjectPath) -> bool:
    """See `objects.is_locked`."""
    return path.is_file()


def _put(path: ObjectPath, data: bytes | Path) -> None:
    """Put or replace; obstore repeats all but a 409, S3's answer to a write during a conditional one."""
    error = None
    for _ in tries():
        try:
            with remote_errors(path):
                obstore.put(path.client, path.key, data, chunk_size=_PART, max_concurrency=_PARTS_AT_ONCE)
        except ConflictError as conflict:
            error = conflict
        else:
            return
    assert error is not None
    raise error


def _upload(folder: Path, path: ObjectPath, names: Sequence[str]) -> None:
    """Put files of a folder below `path`, several at once; the first error is raised."""
    with ThreadPoolExecutor(_UPLOADS) as threads:
        list(threads.map(lambda name: _put(path / name, folder / name), names))


def _files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


@contextlib.contextmanager
def scratch_folder(_: ObjectPath) -> Iterator[Path]:
    """A folder of this machine ($TMPDIR) of one's own; those of processes that were killed are removed.

    A full or forbidden disk there is an InputError that names it.
    """
    _remove_stale_scratch()
    with storage_errors(Path(tempfile.gettempdir()), TMPDIR_REMEDY):
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH))
        try:
            with (folder / ".lock").open("wb") as lock:
                flock(lock, fcntl.LOCK_EX)
                (folder / "files").mkdir()
                yield folder / "files"
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_stale_scratch() -> None:
    """Remove scratch folders whose lock, an hour old, nobody holds: a lock ends with its process."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):
            if time.time() - (folder / ".lock").stat().st_mtime < 3600:
                continue
            with (folder / ".lock").open("rb") as lock:
                if flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                    shutil.rmtree(folder, ignore_errors=True)
