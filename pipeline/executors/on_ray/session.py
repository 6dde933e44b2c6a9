"""The Ray that a driver works with: one that runs, the cluster that is named, or a private one here."""

from __future__ import annotations

import importlib
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import ray
from ray.exceptions import AuthenticationError, RayActorError

from pipeline.executors.on_ray.private import MODE, private_ray, reread_environment
from schemas.errors import InputError
from schemas.run.file import Extract

CONNECT_S = 10.0
NO_PROXY = (("grpc.enable_http_proxy", 0),)
"""As in Ray itself: a proxy of the environment is for the outside, and does not see a cluster."""


@contextmanager
def ray_session(extract: Extract) -> Iterator[None]:
    """The Ray of this process; else the cluster of the run file or $RAY_ADDRESS; else a private local one."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address, mode, started = extract.ray_address, os.environ.get(MODE), ExitStack()
    try:
        with _our_handler():
            if address == "local":
                started.enter_context(private_ray(extract.workers * extract.cpus_per_worker))
            else:
                _connect(address)
        yield
    finally:
        with _our_handler():
            ray.shutdown()
        started.close()
        if mode is None and MODE in os.environ:  # set for this session, by us or by Ray
            del os.environ[MODE]
            reread_environment()


def use_token() -> None:
    """Speak with a token, if there is one: Ray does so by itself for clusters on this machine only (2.60)."""
    if MODE in os.environ or not has_token():
        return
    os.environ[MODE] = "token"
    reread_environment()


def has_token() -> bool:
    """Whether this user has a token, wherever Ray searches for one."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(named or "~/.ray/auth_token").expanduser().is_file()


def token_remedy() -> str:
    """What to do about a token that is missing, or that the cluster does not take."""
    mode = os.environ.get(MODE)
    if mode is not None and mode != "token":
        return f"RAY_AUTH_MODE is {mode!r} here, set RAY_AUTH_MODE=token"
    if has_token():
        return (
            "$RAY_AUTH_TOKEN, or the file $RAY_AUTH_TOKEN_PATH (default ~/.ray/auth_token), must hold the "
            "token of its head node"
        )
    return "there is none here; copy ~/.ray/auth_token from its head node, or set RAY_AUTH_TOKEN"


def _connect(address: str) -> None:
    """With a token where the cluster asks for one: a driver that sends it elsewhere gets no worker."""
    if address != "auto" and not re.fullmatch(r"[^\s/:]+:\d+|\[[^\s/]+\]:\d+", address):
        raise InputError(
            f"the Ray address {address!r} is not HOST:PORT, such as 10.0.0.10:6379 (the head's, not the "
            "dashboard's), nor auto"
        )
    if address != "auto" and _requires_token(address):
        use_token()
        if os.environ.get(MODE) != "token" or not has_token():
            raise InputError(f"the Ray cluster at {address!r} requires a token: {token_remedy()}")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, AuthenticationError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error, AuthenticationError):
            # A head that has another Ray or Python says both versions of both; all else is no user's fault.
            versions = re.findall(r"(Ray|Python): (\S+)", str(error))
            if not str(error).startswith("Version mismatch") or len(versions) != 4:
                raise
            there, here = (
                " and ".join(f"{name} {version}" for name, version in pair)
                for pair in (versions[:2], versions[2:])
            )
            raise InputError(
                f"the Ray cluster at {address!r} runs {there}, this driver {here}: they must be the same, so "
                "install the versions of its head node here (one image for all nodes ensures that)"
            ) from None
        if address == "auto" and isinstance(error, ConnectionError):
            raise InputError(
                f"no Ray cluster runs on this machine ({one_line(error)}): give its head's HOST:PORT"
            ) from None
        raise InputError(
            f"the Ray cluster at {address!r} does not admit this driver ({one_line(error)}): {token_remedy()}"
        ) from None


def _requires_token(address: str) -> bool:
    """Whether a call without a token is refused at HOST:PORT.

    InputError where nobody answers, for Ray itself would try for two minutes. The call's definition is
    private to Ray: where it is another one, a token that is there is taken to be wanted.
    """
    try:
        messages: Any = importlib.import_module("ray.core.generated.gcs_service_pb2")
        services: Any = importlib.import_module("ray.core.generated.gcs_service_pb2_grpc")
    except ImportError:
        return has_token()
    with grpc.insecure_channel(address, options=NO_PROXY) as channel:
        try:
            stub = services.NodeInfoGcsServiceStub(channel)
            stub.CheckAlive(messages.CheckAliveRequest(), timeout=CONNECT_S)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                return True
            raise InputError(
                f"no Ray cluster answers at {address!r} ({error.code().name.lower()}): check "
                "extract.address, or $RAY_ADDRESS"
            ) from None
    return False


@contextmanager
def _our_handler() -> Iterator[None]:
    """Ray puts a handler for SIGTERM, which ends with code 15; the one that is there stays, all the time."""
    handler, utils = signal.getsignal(signal.SIGTERM), importlib.import_module("ray._private.utils")
    name = "set_sigterm_handler"  # private, so best effort
    original = getattr(utils, name, None)
    setattr(utils, name, lambda handler: None)
    try:
        yield
    finally:
        setattr(utils, name, original)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def one_line(error: BaseException) -> str:
    """An error in one line; of a dead actor also what Ray says last, the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("\t")]
    cause = lines[1:][-2:] if isinstance(error, RayActorError) else []
    return f"{type(error).__name__}: {' '.join([*lines[:1], *cause])}" if lines else type(error).__name__
