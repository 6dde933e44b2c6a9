"""Which Ray a driver works with, and what it is told when that does not let it in."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from jobs.tokenize import tokenize
from schemas.errors import InputError
from schemas.run_file import Extract, load_run_file
from tests.lakes import run_content

ROOT = Path(__file__).parents[2]
TOKENS = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")


@pytest.fixture
def session(monkeypatch, tmp_path):
    """The module, for a user without a token; Ray takes nobody in."""
    from pipeline.executors import ray_session

    for name in TOKENS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ray_session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray_session, "_knock", lambda address: None)

    def refuse(**options):
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")

    monkeypatch.setattr(ray_session.ray, "init", refuse)
    yield ray_session
    os.environ.pop("RAY_AUTH_MODE", None)
    ray_session.reread_environment()


def told(session):
    with pytest.raises(InputError) as caught, session.ray_session(Extract(address="10.0.0.1:6379")):
        pass
    return str(caught.value)


def test_a_missing_token_is_named_with_the_file_that_holds_it(session):
    assert told(session) == (
        "the Ray cluster at '10.0.0.1:6379' does not let this driver in (ConnectionError: Failed to "
        "connect to Ray cluster at 10.0.0.1:6379): if the cluster asks for a token, there is none here: copy "
        "~/.ray/auth_token from its head node, or set RAY_AUTH_TOKEN"
    )
    assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.parametrize("where", ["file", "path", "variable"])
def test_a_token_that_is_there_is_used_and_named_when_it_is_wrong(session, tmp_path, monkeypatch, where):
    file = tmp_path / (".ray/auth_token" if where == "file" else "token")
    file.parent.mkdir(exist_ok=True)
    file.write_text("0123")
    if where == "path":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    elif where == "variable":
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0123")
    assert told(session).endswith("(default ~/.ray/auth_token), must hold that of its head node")
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_mode_that_the_user_set_stays_and_is_named(session, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123")
    assert "RAY_AUTH_MODE is 'disabled' here" in told(session)
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_an_address_where_nobody_listens_is_told_at_once(session, monkeypatch):
    monkeypatch.undo()
    with (
        pytest.raises(InputError, match=r"^no Ray cluster answers at '127.0.0.1:1' \(ConnectionRefusedError"),
        session.ray_session(Extract(address="127.0.0.1:1")),
    ):
        pass


LISTENERS = """
import psutil, ray
from pipeline.executors.ray_session import ray_session
from schemas.run_file import Extract
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
def test_a_driver_that_is_asked_to_end_ends_its_workers_and_says_143(tmp_path):
    model = {"path": "tests.executors.test_ray_cluster:slow_lm"}
    changes = {"extract": {"executor": "ray", "workers": 1}, "tokens": {"shard_tokens": 60}, "model": model}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_content(tmp_path, **changes)))
    environment = os.environ | {"LATENTLAKE_TEST_DELAY_S": "0.2"}
    command = [sys.executable, "-m", "jobs.cli", "extract", str(tmp_path / "run.yaml")]
    tokenize(load_run_file(tmp_path / "run.yaml"))
    driver = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    while driver.poll() is None and not list((tmp_path / "store/passes/mid/commits").glob("*.json")):
        time.sleep(0.05)
    processes = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(60) == 143
    assert processes
    assert psutil.wait_procs(processes, timeout=10)[1] == []
