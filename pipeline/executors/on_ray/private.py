"""A Ray for one driver alone: on the loopback, with a token of its own, and where no home is to be had."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import ray

from schemas.errors import InputError

OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Receipts and names are all that passes through Ray."""

MODE, TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
LONGEST_FOLDER = 30
"""Bytes of the path of a folder for Ray's: below it a socket's has some 70 more, and 107 at most."""

_OURS = secrets.token_hex(32)
"""The token of this process's own Rays; whoever does not have it, is let into none of them."""


@contextmanager
def private_ray(cpus: int) -> Iterator[None]:
    """A Ray that nothing beyond this process has a key for, until the block ends; end Ray before that."""
    with ExitStack() as stack:
        stack.enter_context(own_token())
        folder = stack.enter_context(folder_for_sockets())
        options: dict[str, Any] = {} if folder is None else {"_temp_dir": str(folder)}
        with _loopback():
            try:
                ray.init(
                    address="local",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    num_cpus=cpus,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    **options,
                )
            except Exception as error:
                if "timed out during startup" not in str(error):  # Ray has no class for it
                    raise
                raise InputError(
                    "Ray did not start on this machine in time, which may be too busy: run again, or set "
                    "extract.executor: in_process"
                ) from None
        yield


@contextmanager
def own_token() -> Iterator[None]:
    """Ray speaks with our token inside the block, in place of a user's, who may have no home for one.

    A mode that is set to something else, such as `disabled`, stays.
    """
    if os.environ.get(MODE, "token") != "token":
        yield
        return
    with variables({MODE: "token", TOKEN: _OURS}):
        reread_environment()
        yield
    reread_environment()


def reread_environment() -> None:
    """Ray read its environment when it was imported (private API, so best effort)."""
    with suppress(Exception):
        from ray import _raylet

        raylet: Any = _raylet
        raylet.Config.initialize("")
        raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def folder_for_sockets() -> Iterator[Path | None]:
    """A folder for Ray's files, of this user alone and with a short path; None: Ray's own choice will do.

    Ray puts sockets below $RAY_TMPDIR or the system's folder for temporary files, whose paths are limited.
    """
    usual = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    shared = usual / "ray" if (usual / "ray").exists() else usual  # perhaps another user's, who shares it
    if len(os.fsencode(usual)) <= LONGEST_FOLDER and os.access(shared, os.W_OK | os.X_OK):
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="latentlake-", dir="/tmp"))  # for us alone, 0700
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _loopback() -> Iterator[None]:
    """Ray's processes that start inside the block listen on 127.0.0.1 alone, as they do on macOS and Windows.

    On Linux Ray takes the outer address, also when it is given 127.0.0.1.
    """
    constants: Any = None
    with suppress(Exception):  # read when Ray was imported (private, so best effort)
        from ray._private import ray_constants as constants

        constants.ENABLE_RAY_CLUSTER, previous = False, constants.ENABLE_RAY_CLUSTER
    try:
        with variables({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}):
            yield
    finally:
        if constants is not None:
            constants.ENABLE_RAY_CLUSTER = previous


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment inside the block; after it they are what they were."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
