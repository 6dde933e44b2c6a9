"""The Ray that a driver works with: one that runs, the cluster it is told of, or a private one here."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from schemas.errors import InputError
from schemas.run_file import Extract

OBJECT_STORE_BYTES = 80 * 1024 * 1024
"""Receipts and names are all that passes through Ray."""

CONNECT_S = 10.0

TOKEN_FILE = Path("~/.ray/auth_token")


@contextmanager
def ray_session(extract: Extract) -> Iterator[None]:
    """The Ray of this process; else the cluster of the run file or $RAY_ADDRESS; else a private local one."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = address_of(extract)
    handler = signal.getsignal(signal.SIGTERM)
    if address == "local":
        _start_private(extract.workers * extract.cpus_per_worker)
    else:
        _connect(address)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray put its own there, which ends with code 15
    try:
        yield
    finally:
        ray.shutdown()


def address_of(extract: Extract) -> str:
    """Where the cluster is; `local`: a private one."""
    return extract.address or os.environ.get("RAY_ADDRESS") or "local"


def use_token() -> None:
    """Speak with a token where there is one: Ray does so by itself for local clusters only (2.60)."""
    if "RAY_AUTH_MODE" in os.environ or not has_token():
        return
    os.environ["RAY_AUTH_MODE"] = "token"
    reread_environment()


def reread_environment() -> None:
    """Ray read its environment when it was imported (private API, so best effort)."""
    with suppress(Exception):
        from ray import _raylet

        raylet: Any = _raylet
        raylet.Config.initialize("")


def has_token() -> bool:
    """Whether this user has a token, wherever Ray looks for one."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(named or TOKEN_FILE).expanduser().is_file()


def token_remedy() -> str:
    """What to do about a token that is missing, or that the cluster does not take."""
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None and mode != "token":
        return f"RAY_AUTH_MODE is {mode!r} here: if the cluster asks for a token, set RAY_AUTH_MODE=token"
    if has_token():
        return (
            "if the cluster asks for a token, $RAY_AUTH_TOKEN, or the file $RAY_AUTH_TOKEN_PATH (default "
            f"{TOKEN_FILE}), must hold that of its head node"
        )
    return (
        f"if the cluster asks for a token, there is none here: copy {TOKEN_FILE} from its head node, or set "
        "RAY_AUTH_TOKEN"
    )


def _connect(address: str) -> None:
    use_token()
    try:
        _knock(address)
    except OSError as error:
        raise InputError(
            f"no Ray cluster answers at {address!r} ({first_line(error)}): check extract.address, or "
            "$RAY_ADDRESS"
        ) from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, AuthenticationError, ValueError) as error:
        raise InputError(
            f"the Ray cluster at {address!r} does not let this driver in ({first_line(error)}): "
            f"{token_remedy()}"
        ) from None


def _knock(address: str) -> None:
    """OSError where nobody listens at a HOST:PORT: Ray itself would try for two minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


def _start_private(cpus: int) -> None:
    """A Ray for this process alone, which nothing beyond this machine can reach."""
    with _loopback():
        ray.init(
            address="local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
        )


@contextmanager
def _loopback() -> Iterator[None]:
    """Ray's processes that start inside the block listen on 127.0.0.1 alone, as they do on macOS and Windows.

    On Linux Ray takes the outer address, also when it is given 127.0.0.1.
    """
    name: str = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    before = os.environ.get(name)
    os.environ[name] = "0"
    constants: Any = None
    with suppress(Exception):  # read when Ray was imported (private, so best effort)
        from ray._private import ray_constants as constants

        constants.ENABLE_RAY_CLUSTER, was = False, constants.ENABLE_RAY_CLUSTER
    try:
        yield
    finally:
        if constants is not None:
            constants.ENABLE_RAY_CLUSTER = was
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def first_line(error: BaseException) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
