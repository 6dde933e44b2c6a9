"""Paths of stores that lie on object storage, as much like pathlib's as object storage can be.

Everything about the storage comes from the environment, as it does for Polars: AWS_*, GOOGLE_*, AZURE_*
(`AWS_ENDPOINT_URL` and `AWS_ALLOW_HTTP` for S3's relatives). Requests that may be repeated are, by obstore,
as `_RETRIES` says; the others by `tries`.
"""

from __future__ import annotations

import errno
import io
import os
import random
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import MemoryStore, from_url

from schemas.errors import InputError
from schemas.layout import StorePath
from schemas.sentences import NO_SECRETS, holds_secret, shown

SCHEMES = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "memory")
_TRIES, _WAIT_S = 7, 0.1
_RETRIES = {
    "max_retries": _TRIES - 1,
    "retry_timeout": timedelta(minutes=2),
    "backoff": {
        "init_backoff": timedelta(seconds=_WAIT_S),
        "max_backoff": timedelta(seconds=10),
        "base": 2,
    },
}
_URL = re.compile(r"([a-z0-9]+)://([A-Za-z0-9._@+=~-]+)((?:/[A-Za-z0-9._+=~-]+)*)/*")
_NO_BUCKET = re.compile("NoSuchBucket|ContainerNotFound|bucket does not exist")
_ONE_READ = 1 << 23
"""Bytes of one request: a request has 30 s (AWS_TIMEOUT …), whatever it carries."""
_READS = 8
_READ_AHEAD = 1 << 18
_CLIENTS: dict[tuple[str, bool], Any] = {}
_MADE_BY: set[int] = set()
"""The process that made the first client: this one, unless it was forked."""
_MAKING = threading.Lock()


class RemoteError(OSError):
    """Object storage did not answer, or not as it should; worth another try. `filename` is the place."""


class ConflictError(RemoteError):
    """Somebody else writes the same object at this moment, so this write was not taken: 409."""


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object, or all objects below a name: `url` is the store's root, `key` the path below it."""

    url: str
    key: str = ""

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.url, f"{self.key}/{name}".strip("/"))

    def __str__(self) -> str:
        return f"{self.url}/{self.key}".rstrip("/")

    @property
    def name(self) -> str:
        """The last part."""
        return self._posix_path.name

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return self._posix_path.stem

    @property
    def suffix(self) -> str:
        """What the last dot of the name begins, with it."""
        return self._posix_path.suffix

    @property
    def parent(self) -> ObjectPath:
        """All but the last part; the root's is the root."""
        return ObjectPath(self.url, self.key.rpartition("/")[0])

    @property
    def client(self) -> Any:
        """The obstore of the root, one per process."""
        return client(self.url)

    def absolute(self) -> ObjectPath:
        """Itself: it has no working directory."""
        return self

    def exists(self) -> bool:
        """Whether there is an object of this name, or one below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return self.size() is not None

    def is_dir(self) -> bool:
        """Whether there is an object below this name."""
        with remote_errors(self):
            for batch in obstore.list(self.client, prefix=self.key or None, chunk_size=1):
                return bool(batch)
        return False

    def iterdir(self) -> Iterator[ObjectPath]:
        """Objects and folders just below; none where there is nothing."""
        with remote_errors(self):
            listing = obstore.list_with_delimiter(self.client, prefix=self.key or None)
        for key in [*listing["common_prefixes"], *(entry["path"] for entry in listing["objects"])]:
            yield ObjectPath(self.url, key)

    def size(self) -> int | None:
        """Bytes of the object; None where there is none."""
        try:
            with remote_errors(self):
                return obstore.head(self.client, self.key)["size"]
        except FileNotFoundError:
            return None

    def read_bytes(self) -> bytes:
        """The object, large ones by several requests at once; FileNotFoundError where there is none."""
        with remote_errors(self):
            response = obstore.get(self.client, self.key)
            if (size := response.meta["size"]) <= _ONE_READ:
                return bytes(response.bytes())
        starts = range(0, size, _ONE_READ)
        with ThreadPoolExecutor(_READS) as threads:  # obstore's get_ranges would make one request of them
            return b"".join(threads.map(lambda at: self.read_range(at, min(at + _ONE_READ, size)), starts))

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes start to end - 1."""
        with remote_errors(self):
            return bytes(obstore.get_range(self.client, self.key, start=start, end=end))

    def open(self, _: Literal["rb"], /) -> io.BufferedReader:
        """The object opened for reading at any place, at least `_READ_AHEAD` bytes at once."""
        return io.BufferedReader(_Ranges(self), _READ_AHEAD)

    def unlink(self, *, missing_ok: Literal[True]) -> None:  # noqa: ARG002 - S3 does not say what was there
        """Remove the object, if it is there."""
        with suppress(FileNotFoundError), remote_errors(self):
            obstore.delete(self.client, self.key)

    def mkdir(self, *, parents: Literal[True], exist_ok: Literal[True]) -> None:
        """Nothing: names of objects have no folders."""

    @property
    def _posix_path(self) -> PurePosixPath:
        return PurePosixPath(self.key or self.url.rpartition("/")[2])


class _Ranges(io.RawIOBase):
    """An object as a raw file."""

    def __init__(self, path: ObjectPath) -> None:
        size = path.size()
        if size is None:
            raise FileNotFoundError(2, "there is no such object", str(path))
        self._path, self._size, self._place = path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        end = min(self._place + len(buffer), self._size)
        if end <= self._place:
            return 0
        data = self._path.read_range(self._place, end)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)


def store_path(root: str | StorePath) -> StorePath:
    """The path that a run file's store.root, or a command's STORE, names: a folder or a URL.

    InputError for a scheme that is not in `SCHEMES`, and for a URL without a bucket or with odd characters.
    """
    if not isinstance(root, str):
        return root
    scheme, slash, _ = root.partition(":/")
    if not slash or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]+", scheme):
        return Path(root)
    if holds_secret(root):
        raise InputError(f"store {shown(root)} {NO_SECRETS}")
    if scheme not in SCHEMES:
        raise InputError(f"store {root!r}: {scheme}:// is not supported; known: {', '.join(SCHEMES)}")
    match = _URL.fullmatch(root)
    if match is None or {".", ".."} & set(match[3].split("/")):
        raise InputError(
            f"store {root!r} is not a URL of object storage: write {scheme}://BUCKET/PREFIX, where the "
            "prefix has only letters, digits and . _ + = ~ -"
        )
    return ObjectPath(root.rstrip("/"))


def is_memory(path: StorePath) -> bool:
    """Whether it lies in the memory of this process, where no other process sees it."""
    return isinstance(path, ObjectPath) and path.url.startswith("memory:")


def client(url: str, *, retries: bool = True) -> Any:
    """The obstore of a root; without `retries` it sends each request once. memory:// has one per URL.

    InputError in a process forked from one that has clients: obstore's threads are not there, and it would
    wait for them forever.
    """
    is_memory = url.startswith("memory:")
    key = (url, retries or is_memory)
    with _MAKING:  # two threads that come first must not get a memory each
        if _MADE_BY - {os.getpid()}:
            raise InputError(
                f"{url} cannot be read in a forked process: use spawn to start it, in torch with "
                "DataLoader(..., "
                'multiprocessing_context="spawn")'
            )
        _MADE_BY.add(os.getpid())
        if key not in _CLIENTS and is_memory:
            _CLIENTS[key] = MemoryStore()
        elif key not in _CLIENTS:
            options: Any = _RETRIES if retries else {"max_retries": 0}
            with remote_errors(url):
                _CLIENTS[key] = from_url(url, retry_config=options)
        return _CLIENTS[key]


def forget_clients() -> None:
    """Make clients anew, as the environment is now; what lay in memory is gone."""
    with _MAKING:
        _CLIENTS.clear()


def tries() -> Iterator[int]:
    """Numbers of tries, each after a longer wait: about six seconds in all."""
    for number in range(_TRIES):
        if number:
            time.sleep(_WAIT_S * 2 ** (number - 1) * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
        yield number


@contextmanager
def remote_errors(path: object) -> Iterator[None]:
    """Turn errors of object storage into InputError for what the user can fix, RemoteError for what passes.

    FileNotFoundError and FileExistsError are what they are.
    """
    try:
        yield
    except FileNotFoundError as error:
        if _NO_BUCKET.search(text := str(error)):
            raise _no_bucket(path, text) from None
        raise FileNotFoundError(errno.ENOENT, "there is no such object", str(path)) from None
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise InputError(
            f"{path} is forbidden ({_brief(str(error))}): check the credentials in the environment (AWS_*, "
            "GOOGLE_*, AZURE_*), and their permissions"
        ) from None
    except (AlreadyExistsError, PreconditionError) as error:
        # Azure answers 409 where the others answer 412; a 409 of the others is no answer yet
        if "status code: 409" in (text := str(error)) and "BlobAlreadyExists" not in text:
            raise ConflictError(errno.EIO, f"object storage failed ({_brief(text)})", str(path)) from None
        raise FileExistsError(errno.EEXIST, "the object exists already", str(path)) from None
    except (NotSupportedError, NotImplementedError) as error:
        raise InputError(
            f"{path}: this object storage does not support the request ({_brief(str(error))}); commits need "
            "conditional puts (AWS_CONDITIONAL_PUT: etag)"
        ) from None
    except BaseError as error:
        if _NO_BUCKET.search(text := str(error)):  # what Azure's answer to a listing is
            raise _no_bucket(path, text) from None
        raise _translated(path, text) from None


def _no_bucket(path: object, text: str) -> InputError:
    return InputError(
        f"{path} is in a bucket that does not exist ({_brief(text)}): create it, or set another store.root"
    )


def _translated(path: object, text: str) -> Exception:
    """What an error of no class of its own means."""
    message = text.partition("Debug source")[0]
    wrong = f"object storage failed ({_brief(text)})"
    if re.search(r"169\.254\.|metadata\.google|token request|[Cc]redential|must be specified", message):
        wrong = (
            f"no credentials were found ({_brief(text)}): set AWS_*, GOOGLE_* or AZURE_* in the environment"
        )
    elif not _is_transient(message):
        wrong = (
            f"object storage refuses ({_brief(text)}): check the URL, region and endpoint (AWS_REGION, "
            "AWS_ENDPOINT_URL …)"
        )
    if _is_transient(message):
        return RemoteError(errno.EIO, wrong, str(path))
    return InputError(f"{path}: {wrong}")


def _is_transient(message: str) -> bool:
    """Whether the same request may do better later: no answer, or one that blames the server or the rush."""
    if status := re.search(r"status code: (\d+)", message):
        return int(status[1]) >= 500 or int(status[1]) in (408, 429)
    return "HTTP error" in message


def _brief(text: str) -> str:
    """The storage's own words, short."""
    code = re.search(r"<Code>(.*?)</Code>", text)
    if code:
        return code[1]
    first = " ".join(text.partition("Debug source")[0].split())
    return first.rpartition(" - ")[2][:120].strip(" :")
