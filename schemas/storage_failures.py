"""The operating system's errors about files and folders, in sentences: each kind has its own remedy.

No permission, a failing disk, a stale handle and too many open files are not damage, and are not called so.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from schemas.errors import InputError, PassingError


def _numbers(names: str) -> frozenset[int]:
    """Error numbers by name; not every system has all of them."""
    return frozenset(getattr(errno, name) for name in names.split() if hasattr(errno, name))


FORBIDDEN = _numbers("EACCES EPERM")
FULL = _numbers("ENOSPC EDQUOT EFBIG")
_READ_ONLY = _numbers("EROFS")
_BROKEN = _numbers("EIO EREMOTEIO EUCLEAN ENXIO")
_STALE = _numbers("ESTALE")
_TOO_MANY_FILES = _numbers("EMFILE ENFILE")
_NO_ANSWER = _numbers(
    "ETIMEDOUT ECONNRESET ECONNABORTED ENOTCONN ESHUTDOWN EHOSTDOWN EHOSTUNREACH ENETUNREACH ENETDOWN ENOLINK"
)
_NO_MEMORY = _numbers("ENOMEM")
_LOOPS, _TOO_LONG = _numbers("ELOOP"), _numbers("ENAMETOOLONG")
_LASTING = _READ_ONLY | _LOOPS | _TOO_LONG
_REMEDIES = {
    _READ_ONLY: "the file system is mounted read-only: mount it for writing, or {elsewhere}",
    _BROKEN: "the disk, or the network file system, failed; the file itself may be intact: look into the "
    "system's log, and run again once it works",
    _STALE: "the network file system was remounted, or its server replaced the file: run again, and remount "
    "it if that does not help",
    _TOO_MANY_FILES: "the limit of open files is reached: raise it (`ulimit -n`), and run again",
    _NO_ANSWER: "the network file system did not answer: run again once it does",
    _NO_MEMORY: "the machine has no memory left: end another program, and run again",
    _LOOPS: "symbolic links in its path form a loop: remove one of them",
    _TOO_LONG: "its path is too long: give a shorter one",
}
"""By error number, what is the matter and what helps; of full and forbidden disks see `storage_failure`."""
_IN_TEXT = re.compile(r"\(os error (\d+)\)|\[[Ee]rrno (\d+)\]")
"""How Rust (Polars, obstore) and Arrow give the number of a system's error."""


def file_of(error: BaseException, otherwise: object) -> object:
    """The file that the error itself names, else what it was about."""
    return getattr(error, "filename", None) or otherwise


def forbidden(error: BaseException, folders: Iterable[Path]) -> InputError | None:
    """The sentence where no permission is the cause of an error, or keeps us from listing one of the folders.

    Libraries take a folder of their cache that they may not look into for one that has nothing.
    """
    if system_error(error) in FORBIDDEN:
        return storage_failure(error, file_of(error, next(iter(folders))), "read")
    for folder in folders:
        try:
            next(folder.iterdir(), None)
        except PermissionError as refused:
            return storage_failure(refused, folder, "read")
        except OSError:
            continue
    return None


def forbidden_in_hub_cache(error: BaseException, repository: str) -> InputError | None:
    """`forbidden`, of the folders of the hub's cache in which the files of a repository of models lie."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    own = cache / f"models--{repository.replace('/', '--')}"
    return forbidden(error, (cache, own, own / "refs", own / "snapshots"))


def storage_failure(
    error: BaseException, path: object, verb: Literal["read", "written"], elsewhere: str = ""
) -> InputError | None:
    """What the system refused to do with `path`, in a sentence; None where no system's error is the cause.

    A PassingError where the same may do later, so that a worker tries a shard again.

    `elsewhere` is what helps besides, where something is written. A file that is missing, or a folder in its
    place, is not a failure of this kind, for what it means depends on the file.
    """
    number = system_error(error)
    if number is None:
        return None
    where = f"{path} cannot be {verb} ({os.strerror(number)})"
    if number in FULL:
        return InputError(
            f"no space left to write {path}: free some space (or raise the quota), or "
            f"{elsewhere or 'write to another disk'}, then run again; what is committed stays"
        )
    if number in FORBIDDEN:
        do = "read" if verb == "read" else "write"
        rest = f", or {elsewhere}" if elsewhere and verb == "written" else ""
        return InputError(f"{where}: allow this user to {do} there{rest}")
    kind = InputError if number in _LASTING else PassingError
    remedy = next(remedy for numbers, remedy in _REMEDIES.items() if number in numbers)
    return kind(f"{where}: " + remedy.format(elsewhere=elsewhere or "write to another disk"))


def system_error(error: BaseException) -> int | None:
    """The error number of the system's that is the cause of an error, if it is one of those known here."""
    known = FULL | FORBIDDEN | frozenset().union(*_REMEDIES)
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        number = cause.errno if isinstance(cause, OSError) else None
        if number is None and (match := _IN_TEXT.search(str(cause))):
            number = int(match[1] or match[2])
        if number in known:
            return number
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None
