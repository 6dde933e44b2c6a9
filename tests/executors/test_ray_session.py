"""Which Ray a driver works with, and what is reported when that does not let it in."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
import yaml

from jobs.lake.tokenize import tokenize
from schemas.errors import InputError
from schemas.run.file import Extract, load_run_file
from tests.fixtures.runs import run_content

ROOT = Path(__file__).parents[2]
TOKENS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")


class Gcs(grpc.GenericRpcHandler):
    """A cluster's front door; with a token, only who brings that is let in."""

    def __init__(self, token=None):
        self.token = token

    def service(self, details):
        if not details.method.endswith("/CheckAlive"):
            return None
        brought = dict(details.invocation_metadata).get("authorization")
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.answer(brought, context))

    def answer(self, brought, context):
        if self.token and brought != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return b""


@pytest.fixture(autouse=True)
def environment_as_before():
    """After each test, once the environment is restored, Ray reads it again for the tests that follow."""
    yield
    from pipeline.executors.on_ray.private import reread_environment

    reread_environment()


@pytest.fixture
def session(monkeypatch, tmp_path):
    """The module, for a user without a token; Ray itself lets nobody in."""
    from pipeline.executors.on_ray import session as ray_session

    for name in TOKENS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray_session.ray, "is_initialized", lambda: False)

    def refuse(**options):
        raise ConnectionError(f"Failed to connect, mode {os.environ.get('RAY_AUTH_MODE')}")

    monkeypatch.setattr(ray_session.ray, "init", refuse)
    return ray_session


@contextmanager
def listening(token):
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Gcs(token)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def printed(session, token="right"):
    """The sentence for a driver that comes to a cluster with this token."""
    with listening(token) as address, pytest.raises(InputError) as caught:  # noqa: SIM117
        with session.ray_session(Extract(address=address)):
            pass
    assert "RAY_AUTH_MODE" not in os.environ or os.environ["RAY_AUTH_MODE"] == "disabled"
    return str(caught.value).replace(address, "HEAD")


def test_a_missing_token_is_named_at_once_with_the_file_that_holds_it(session):
    assert printed(session) == (
        "the Ray cluster at 'HEAD' requires a token: there is none here; copy ~/.ray/auth_token from its "
        "head node, or set RAY_AUTH_TOKEN"
    )


@pytest.mark.parametrize("where", ["file", "path", "variable"])
def test_a_token_that_is_there_is_used_and_named_when_it_is_wrong(session, tmp_path, monkeypatch, where):
    file = tmp_path / (".ray/auth_token" if where == "file" else "token")
    file.parent.mkdir(exist_ok=True)
    file.write_text("0123")
    if where == "path":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    elif where == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0123")
    assert printed(session) == (
        "the Ray cluster at 'HEAD' does not admit this driver (ConnectionError: Failed to connect, mode "
        "token): $RAY_AUTH_TOKEN, or the file $RAY_AUTH_TOKEN_PATH (default ~/.ray/auth_token), must hold "
        "the token of its head node"
    )


def test_a_token_is_not_used_where_none_is_requested_or_no_worker_would_come(session, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123")
    assert "mode None" in printed(session, token=None)


def test_a_mode_that_the_user_set_stays_and_is_named(session, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123")
    assert printed(session).endswith(
        "requires a token: RAY_AUTH_MODE is 'disabled' here, set RAY_AUTH_MODE=token"
    )


def test_the_handler_of_sigterm_stays_when_ray_does_not_start(session, monkeypatch):
    def ours(number, frame):
        pass

    def fail(**options):
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        raise ConnectionError("nobody")

    monkeypatch.setattr(session.ray, "init", fail)
    before = signal.signal(signal.SIGTERM, ours)
    try:
        with pytest.raises(ConnectionError), session.ray_session(Extract(address="local")):
            pass
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_address_where_nobody_listens_is_reported_at_once(session):
    with (
        pytest.raises(InputError, match=r"^no Ray cluster answers at '127.0.0.1:1' \(unavailable\): check"),
        session.ray_session(Extract(address="127.0.0.1:1")),
    ):
        pass


LISTENERS = """
import psutil, ray
from pipeline.executors.on_ray.session import ray_session
from schemas.run.file import Extract
class Worker:
    def pid(self): return 1
with ray_session(Extract(cpus_per_worker=1)):
    worker = ray.remote(num_cpus=1)(Worker).remote()
    ray.get(worker.pid.remote())
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        for connection in process.net_connections(kind="inet"):
            if connection.status == "LISTEN":
                print(connection.laddr.ip)
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_private_session_listens_on_the_loopback_alone():
    environment = {name: value for name, value in os.environ.items() if name not in TOKENS}
    run = [sys.executable, "-c", LISTENERS]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    addresses = {line.removeprefix("::ffff:") for line in done.stdout.split()}
    assert addresses
    assert all(ipaddress.ip_address(address).is_loopback for address in addresses)


@pytest.mark.ray
@pytest.mark.slow
def test_a_driver_that_is_requested_to_end_ends_its_workers_and_says_143(tmp_path):
    model = {"path": "tests.executors.test_ray_cluster:slow_lm"}
    changes = {"extract": {"executor": "ray", "workers": 1}, "tokens": {"shard_tokens": 60}, "model": model}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_content(tmp_path, **changes)))
    environment = os.environ | {"LATENTLAKE_TEST_DELAY_S": "0.2"}
    command = [sys.executable, "-m", "jobs", "extract", str(tmp_path / "run.yaml")]
    tokenize(load_run_file(tmp_path / "run.yaml"))
    driver = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    while driver.poll() is None and not list((tmp_path / "store/passes/mid/commits").glob("*.json")):
        time.sleep(0.05)
    processes = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(60) == 143
    assert processes
    assert psutil.wait_procs(processes, timeout=10)[1] == []


PRIVATE = """
import os, ray
from pipeline.executors.on_ray.session import _requires_token, ray_session
from schemas.run.file import Extract
class Worker:
    def answer(self): return 7
for _ in range(2):  # a second one in the same process too
    with ray_session(Extract(cpus_per_worker=1)):
        worker = ray.remote(num_cpus=1)(Worker).remote()
        assert ray.get(worker.answer.remote()) == 7
        assert _requires_token(ray.get_runtime_context().gcs_address)
assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & set(os.environ)
"""
NOWHERE = "http://127.0.0.1:9"
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "grpc_proxy")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("home", ["none", "unwritable, with a long temporary folder and a proxy"])
def test_a_private_session_asks_for_a_token_of_its_own_in_any_environment(tmp_path, home):
    environment = {name: value for name, value in os.environ.items() if name not in TOKENS}
    (long := tmp_path / ("t" * 80)).mkdir()
    if home == "none":
        del environment["HOME"]
    else:
        environment |= {"HOME": "/proc/nowhere", "TMPDIR": str(long), **dict.fromkeys(PROXIES, NOWHERE)}
    done = subprocess.run(
        [sys.executable, "-c", PRIVATE],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_proxy_of_the_environment_does_not_hide_a_cluster(session, monkeypatch):
    for name in PROXIES:
        monkeypatch.setenv(name, NOWHERE)
    assert "requires a token: there is none here" in printed(session)


def test_another_version_on_the_head_is_one_sentence_with_both(session, monkeypatch):
    def refuse(**options):
        raise RuntimeError(
            "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.11.9\n"
            "This process on Ray was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
        )

    monkeypatch.setattr(session.ray, "init", refuse)
    assert printed(session, token=None) == (
        "the Ray cluster at 'HEAD' runs Ray 2.59.0 and Python 3.11.9, this driver Ray 2.60.0 and Python "
        "3.11.7: they must be the same, so install the versions of its head node here (one image for all "
        "nodes ensures that)"
    )


def test_a_ray_that_does_not_start_in_time_is_one_sentence(monkeypatch):
    from pipeline.executors.on_ray import private as ray_private

    def late(**options):
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr(ray_private.ray, "init", late)
    with (
        pytest.raises(InputError, match=r"in time.*extract\.executor: in_process"),
        ray_private.private_ray(1),
    ):
        pass


def test_a_folder_for_sockets_is_short_private_and_goes_again(tmp_path, monkeypatch):
    from pipeline.executors.on_ray.private import LONGEST_FOLDER, folder_for_sockets

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("t" * 40)))
    with folder_for_sockets() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(str(folder)) <= LONGEST_FOLDER
    assert not folder.exists()
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    with folder_for_sockets() as folder:
        assert folder is None or str(folder).startswith("/tmp/")
