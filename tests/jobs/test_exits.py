"""How commands end: by signals at any moment, with streams that take nothing, and with other encodings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.fixtures.runs import run_content

ROOT = Path(__file__).parents[2]
SWALLOWS = """
import sys, time, weakref
from jobs.command.exits import run_app

class Node: pass

def in_a_callback():
    def lost(_): time.sleep(0.5)
    node = Node()
    watch = weakref.ref(node, lost)
    del node

def in_a_bare_except():
    for _ in range(3):
        try: time.sleep(0.5)
        except: pass

def app(**options):
    print("begun", flush=True)
    {kind}()
    try: time.sleep(20)
    finally:
        time.sleep(0.5)  # cleaning up takes longer than looking again
        print("cleaned", flush=True)
    print("went on", flush=True)
"""


def started(code, *arguments):
    """A process that has begun."""
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["in_a_callback", "in_a_bare_except"])
def test_a_signal_whose_exception_is_lost_ends_the_program_after_it_has_cleaned_up(kind, number):
    process = started(SWALLOWS.replace("{kind}", kind) + "\nrun_app(app, [])")
    time.sleep(0.2)
    process.send_signal(number)
    output, errors = process.communicate(timeout=15)
    assert process.returncode == 128 + number
    assert output == "cleaned\n"
    assert errors == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_command_line_is_imported_ends_it_without_a_word(number):
    code = (
        "import sys\nfrom jobs.command.endings import ENDINGS\nENDINGS.catch()\nprint('begun', flush=True)\n"
    )
    process = started(code + "import time\ntime.sleep(20)")
    process.send_signal(number)
    output, errors = process.communicate(timeout=15)
    assert (process.returncode, output, errors) == (128 + number, "", "")


def cli(*arguments, out=subprocess.PIPE, **environment):
    command = [sys.executable, "-m", "jobs", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, stdout=out, stderr=subprocess.PIPE, timeout=250
    )


@pytest.mark.slow
def test_run_goes_to_its_end_where_output_is_not_utf8(tmp_path):
    content = run_content(tmp_path, store={"root": str(tmp_path / "läge-日本")})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    done = cli("run", tmp_path / "run.yaml", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "läge-日本/tables/mid/features.parquet").is_file()
    done = cli("status", tmp_path / "läge-日本", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert b"ge-??" in done.stdout
    assert cli("feature", tmp_path / "run.yaml", "3", PYTHONIOENCODING="ascii").returncode == 0


def test_help_and_errors_where_output_is_ascii():
    assert cli("--help", PYTHONIOENCODING="ascii").returncode == 0
    done = cli("status", "läge\udc80", PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert done.stderr.startswith(b"latentlake: l?ge\\udc80 is not a store")


def test_a_pipe_that_nobody_reads_ends_without_a_word():
    code = "from jobs.command.exits import run_app\nfrom jobs.terminal.console import say\n"
    code += "def app(**options):\n    for _ in range(100_000): say('line')\nrun_app(app, [])"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == b""
    assert process.wait(20) == 141


def test_a_notebook_that_names_a_backend_of_its_own_stops_no_figure():
    code = "from jobs.command.exits import run_app; run_app(lambda **_: __import__('jobs.figures') and 0, [])"
    environment = os.environ | {"MPLBACKEND": "no backend of matplotlib"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


def test_a_full_device_is_one_sentence():
    with Path("/dev/full").open("wb") as full:
        done = cli("--help", out=full)
    assert done.returncode == 2
    assert done.stderr.startswith(
        b"latentlake: no space left to write the output of `latentlake --help`: free some"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("top", "x", "9" * 5000), "as an integer, exceeded maximum size (see `latentlake top --help`)"),
        (("top", "x", "9" * 40), "latentlake: feature is a number of 133 bits: give one of at most 64"),
        (("top", "x", "1", "-k", "9" * 40), "latentlake: k is a number of 133 bits"),
        (("profile", "x", "--threshold", "nan"), "latentlake: threshold is nan: give a finite number"),
        (("elicit", "x", "y", "--feature", "9" * 40), "latentlake: feature is a number of 133 bits"),
        (("gc", "x", "--older-than", "inf"), "latentlake: older-than is inf: give a finite number"),
        (("demo", "--tokens", "9" * 5000), "is neither a positive number nor 'all'"),
        (("rank", "x", "--window", "0:" + "9" * 5000), "latentlake: "),
        (("stats", "[b]x"), "latentlake: [b]x is not a store"),
        (("stats", "[/nothing]"), "latentlake: [/nothing] is not a store"),
        (("stats", "s3://user:sec ret@bucket/x"), "latentlake: store 's3://***@bucket/x' holds a user"),
        (("stats", "x\x1b[31m"), "latentlake: x\\x1b[31m is not a store"),
        (("stats", "x", "--bo\x1bgus"), "No such option: --bo\\x1bgus (see `latentlake stats --help`)"),
        (("n" * 100_000,), "…"),
    ],
)
def test_an_argument_that_cannot_be_is_one_sentence(capsys, monkeypatch, arguments, message):
    from jobs.cli import main

    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    errors = capsys.readouterr().err
    assert stop.value.code == 2
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert len(errors) < 4_100
