"""`latentlake submit`: what is shipped, what is refused, and a job that is stopped and submitted again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import yaml

from jobs.lake.run import run
from jobs.lake.submit import submit
from pipeline.executors.on_ray.package import check_package, hiding_packages
from pipeline.executors.on_ray.submission import JobServer
from pipeline.store import FeatureStore
from schemas.errors import InputError
from schemas.run.file import load_run_file
from tests.fixtures.runs import data_bytes, run_content

ROOT = Path(__file__).parents[2]
GATED_MODEL = """
import os, time
from kit import tiny_lm

def gated_lm():
    gate = os.environ.get("LATENTLAKE_TEST_GATE", "")

    def wait(module, args):
        while os.path.exists(gate):
            time.sleep(0.05)

    model = tiny_lm()
    model.embed.register_forward_pre_hook(wait)
    return model
"""
"""A model that stands still while a file is there."""


def run_yaml(folder, **changes):
    """A run file in `folder`."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run_content(folder, **changes)))
    return path


def test_a_run_file_that_the_cluster_would_not_get_is_refused(tmp_path):
    path = run_yaml(tmp_path)
    with pytest.raises(InputError, match=rf"{path} is not in {ROOT}, which is copied to the cluster"):
        submit(path, "http://127.0.0.1:1", ROOT)


def test_a_store_inside_the_jobs_temporary_copy_is_refused(tmp_path):
    path = run_yaml(tmp_path, store={"root": "out/store"})
    with pytest.raises(InputError, match=r"store.root 'out/store' is relative"):
        submit(path, "http://127.0.0.1:1", tmp_path)


def test_a_store_in_the_drivers_memory_is_refused(tmp_path):
    path = run_yaml(tmp_path, store={"root": "memory://lake"})
    with pytest.raises(InputError, match=r"'memory://lake' lies in the memory of one process"):
        submit(path, "http://127.0.0.1:1", tmp_path)


def test_no_server_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"^no Ray dashboard answers at http://127.0.0.1:1 "):
        submit(run_yaml(tmp_path), "http://127.0.0.1:1", tmp_path)


def test_the_package_of_the_working_tree_is_small_and_holds_the_code(tmp_path):
    from ray._private.runtime_env.packaging import create_package, get_excludes_from_ignore_files

    (tree := tmp_path / "tree").mkdir()
    files = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in files.split("\0"):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    assert get_excludes_from_ignore_files(tree, True)
    create_package(str(tree), tmp_path / "package.zip", include_gitignore=True)
    assert (tmp_path / "package.zip").stat().st_size < 4e6
    held = set(zipfile.ZipFile(tmp_path / "package.zip").namelist())
    code = {name for name in files if name.startswith(("pipeline/", "jobs/", "schemas/"))}
    assert {name for name in code if not name.startswith("jobs/demo_data/")} <= held
    assert not {name for name in held if name.startswith(("tests/", "docs/", ".git/", "jobs/demo_data/"))}


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory, short_folder):
    """A single-node Ray with a dashboard that requires a token: the dashboard's address, our environment."""
    folder, token = short_folder, tmp_path_factory.mktemp("token") / "token"
    token.write_text("0123456789abcdef" * 4)
    port, dashboard, agent = free_port(), free_port(), free_port()
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "LATENTLAKE_TEST_GATE": str(folder / "gate"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment.pop("RAY_ADDRESS", None)
    options = {
        "port": port,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "dashboard-host": "127.0.0.1",
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": 2,
        "object-store-memory": 80_000_000,
        "temp-dir": folder,
    }
    command = ["ray", "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    del environment["RAY_AUTH_MODE"]
    wait_for_agent(address, token.read_text())
    yield address, environment
    process.terminate()
    try:
        process.wait(30)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_agent(address, token):
    """Until the server can take a job."""
    import json
    import urllib.request

    end = time.monotonic() + 60
    while time.monotonic() < end:
        request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                json.load(answer)
                return
        except OSError:
            time.sleep(0.3)
    raise AssertionError("the dashboard did not come up")


def start(folder, address, environment):
    """`latentlake submit` in a process of its own."""
    command = [sys.executable, "-m", "jobs", "submit", str(folder / "run.yaml")]
    command += ["--address", address, "--working-dir", str(folder)]
    output = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output, text=True)


@pytest.mark.ray
@pytest.mark.slow
def test_a_server_that_asks_for_a_token_has_its_sentence(head, tmp_path):
    address, environment = head
    run_yaml(tmp_path)
    (tmp_path / "empty").mkdir()
    without = {k: v for k, v in environment.items() if k != "RAY_AUTH_TOKEN_PATH"} | {
        "HOME": str(tmp_path / "empty")
    }
    process = start(tmp_path, address, without)
    _, output = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"the Ray cluster at {address} requires a token" in output
    assert "copy ~/.ray/auth_token from its head node" in output


@pytest.mark.parametrize(("code", "raised"), [(502, False), (404, True)])
def test_a_proxy_that_is_away_for_a_moment_ends_no_following_and_an_unknown_job_does(
    monkeypatch, code, raised
):
    answers = iter([RuntimeError(f"Request failed with status code {code}: Bad Gateway."), "details"])

    def get_job_info(job):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("pipeline.executors.on_ray.submission.time.sleep", lambda seconds: None)
    server = JobServer.__new__(JobServer)
    server._client = SimpleNamespace(get_job_info=get_job_info)
    if raised:
        with pytest.raises(RuntimeError, match="404"):
            server._details("run-1")
    else:
        assert server._details("run-1") == "details"


@pytest.fixture
def project(tmp_path):
    """A working directory as a user has it: the three folders, a model of one's own, and a run file."""
    for name in ("jobs", "pipeline", "schemas"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("demo_data", "__pycache__")
        )
    shutil.copy(ROOT / "tests" / "kit.py", tmp_path / "kit.py")
    (tmp_path / "gated.py").write_text(GATED_MODEL)
    return tmp_path


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_that_was_stopped_goes_on_when_submitted_again_and_no_byte_differs(
    head, project, tmp_path_factory, monkeypatch
):
    address, environment = head
    root, calm = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("calm")
    same = {"model": {"path": "gated:gated_lm"}, "tokens": {"shard_tokens": 100}}
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(project)
    run(load_run_file(run_yaml(project, store={"root": str(calm)}, **same)))
    run_yaml(project, store={"root": str(root)}, extract={"executor": "ray", "workers": 2}, **same)

    first = start(project, address, environment)
    while first.poll() is None and len(list(root.glob("passes/mid/commits/*.json"))) < 3:
        time.sleep(0.05)
    gate = Path(environment["LATENTLAKE_TEST_GATE"])
    gate.touch()
    stop = ["ray", "job", "stop", "--no-wait", "--address", address, "run-1"]
    subprocess.run(stop, env=environment | {"RAY_AUTH_MODE": "token"}, check=True, capture_output=True)
    output, errors = first.communicate(timeout=60)
    gate.unlink()
    assert first.returncode == 130, output + errors
    committed = len(list(root.glob("passes/mid/commits/*.json")))
    assert 3 <= committed < len(FeatureStore.open(calm).shards)

    second = start(project, address, environment)
    output, errors = second.communicate(timeout=120)
    assert second.returncode == 0, output + errors
    assert "submitted run-2: python -m jobs run run.yaml" in output
    assert f"{committed} were already done" in output
    assert data_bytes(root) == data_bytes(calm)


@pytest.mark.ray
@pytest.mark.slow
def test_submit_ends_with_the_code_of_a_driver_that_could_not_run(head, project, tmp_path_factory):
    address, environment = head
    root = tmp_path_factory.mktemp("nowhere")
    run_yaml(project, store={"root": str(root)}, corpus={"path": str(root / "no.parquet")})
    process = start(project, address, environment)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2, output + errors
    assert f"latentlake: corpus.path '{root / 'no.parquet'}'" in output
    assert "ended with exit code 2" in output


@pytest.mark.parametrize(
    "name",
    [".ssh/id_ed25519", ".aws/credentials", ".env", "conf/.env.local", "server.pem", ".config/gcloud/x.db",
     ".netrc", ".cache/huggingface/token", ".ray/auth_token", ".kube/config", ".git-credentials", ".envrc",
     "prod.env", ".vault-token", ".Renviron", "conf/rclone.conf", ".kaggle/kaggle.json"],
)  # fmt: skip
def test_a_working_directory_with_keys_is_refused_and_names_them(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("secret")
    with pytest.raises(InputError, match="hold keys or passwords: move the run file into a folder") as e:
        submit(run_yaml(tmp_path), "http://127.0.0.1:1", tmp_path)
    assert f"would be uploaded with {name[:4]}" in str(e.value)
    (tmp_path / ".rayignore").write_text(f"{name}\n{name.split('/')[0]}\n")
    with pytest.raises(InputError, match="no Ray dashboard answers"):
        submit(tmp_path / "run.yaml", "http://127.0.0.1:1", tmp_path)


def test_a_link_to_keys_is_refused_and_examples_are_not(tmp_path):
    (keys := tmp_path / "home/.ssh").mkdir(parents=True)
    (project := tmp_path / "project").mkdir()
    (project / ".env.example").write_text("TOKEN=")
    assert check_package(project) == (1, 6)
    (project / "keys").symlink_to(keys)
    with pytest.raises(InputError, match=r"would be uploaded with keys, which hold keys or passwords"):
        check_package(project)


def test_packages_that_would_hide_ours_are_not_uploaded(tmp_path, capsys):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/__init__.py").write_text("raise SystemExit(7)")
    (tmp_path / "pipeline").mkdir()  # without Python it hides nothing
    (tmp_path / "pipeline/notes.txt").touch()
    run_yaml(tmp_path)
    assert hiding_packages(tmp_path) == ["jobs"]
    assert check_package(tmp_path, ["jobs"])[0] == check_package(tmp_path)[0] - 1
    assert hiding_packages(ROOT) == []
    with pytest.raises(InputError, match="no Ray dashboard answers"):
        submit(tmp_path / "run.yaml", "http://127.0.0.1:1", tmp_path)
    assert "note: jobs/ is not uploaded" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.slow
def test_submit_works_from_a_folder_with_packages_of_our_names(head, tmp_path, tmp_path_factory):
    address, environment = head
    for name in ("jobs", "pipeline", "schemas"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit(7)")
    root = tmp_path_factory.mktemp("nowhere")
    run_yaml(tmp_path, store={"root": str(root)}, corpus={"path": str(root / "no.parquet")})
    process = start(tmp_path, address, environment)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2, output + errors
    assert ": latentlake run run.yaml" in output
    assert f"latentlake: corpus.path '{root / 'no.parquet'}'" in output


def test_more_files_than_anybody_uploads_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.executors.on_ray.package.MOST_FILES", 2)
    for number in range(3):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(InputError, match=r"holds more than 2 files or 4\.3 GB, which would all be uploaded"):
        check_package(tmp_path)


def test_the_password_of_a_dashboards_address_is_not_repeated(tmp_path):
    with pytest.raises(
        InputError, match=r"--address 'http://\*\*\*@host:8265/x' is not a dashboard's"
    ) as message:
        submit(run_yaml(tmp_path), "http://me:secret@host:8265/x", tmp_path)
    assert "secret" not in str(message.value)


def test_a_proxy_of_the_environment_does_not_hide_the_dashboard(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(InputError, match="no Ray dashboard answers at http://localhost:1"):
        JobServer("http://localhost:1")
    assert os.environ["no_proxy"] == "example.org,localhost"
    assert not requests.utils.get_environ_proxies("http://localhost:1/api/jobs/")
