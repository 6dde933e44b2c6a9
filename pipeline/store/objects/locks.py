"""Locks of files, and where a file system or object storage has none, a file or object in their place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from schemas.errors import InputError
from schemas.layout import StorePath

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
"""The errors of `flock` where there are no locks: Lustre without its option, NFS without its lock service."""
PathT = TypeVar("PathT", bound=StorePath)


def flock(file: IO[bytes], operation: int) -> bool:
    """Lock a file as `fcntl.flock` does; False where its file system has no such locks."""
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


@contextlib.contextmanager
def held_by_file(path: PathT, what: str, put: Callable[[PathT, bytes], bool]) -> Iterator[None]:
    """Hold a lock that is a file or object naming its holder; a process that is killed leaves it behind."""
    who = f"{socket.gethostname()}, process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S %Z')}"
    if not put(path, json.dumps({"who": who, "id": uuid.uuid4().hex}).encode()):
        who = "somebody"
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            who = str(json.loads(path.read_bytes())["who"])[:200]
        raise InputError(
            f"another {what} ({who}): wait for it, and run again; if it was killed, delete the "
            f"{'file' if isinstance(path, Path) else 'object'} {path}, which it left behind"
        )
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
