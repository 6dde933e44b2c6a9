"""The demo whose answer is known, from the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from pipeline.store import FeatureStore
from tests.fixtures.notebooks import execute, kinds_of, read_notebook

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "out"
    done = run("demo", "--synthetic", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split()), out


def test_it_says_that_the_line_finds_the_truth(demo):
    message, _ = demo
    for part in (
        "every feature fires in exactly the right rows",
        "recovered from co-activation alone: 6 of 6, and no other",
        "correlated pairs firing together",
        "truth against measured",
        "Try next",
    ):
        assert part in message
    assert "warning" not in message


def test_the_exact_site_is_exact_and_the_noisy_one_near(demo):
    _, out = demo
    store = FeatureStore.open(out / "store")
    exact, noisy = (store.scan_table(site, "truth").collect() for site in ("exact", "noisy"))
    assert exact["n_hits"].to_list() == exact["n_drawn"].to_list() == exact["n_active"].to_list()
    assert noisy["decoder_cosine"].min() > 0.95
    assert noisy.select(pl.col("recall").min()).item() > 0.95
    assert store.verify().problems == []


def test_its_next_commands_run_and_wrong_ones_end_with_a_sentence(demo):
    _, out = demo
    store, truth = str(out / "store"), str(out / "truth.npz")
    assert run("truth", store, "--truth", truth, "--site", "noisy").returncode == 0
    made = run("make-dictionary", str(out / "run.yaml"), "--out", str(out / "more"), "--noise", "0.1")
    assert made.returncode == 0
    assert (out / "more" / "sae-0.1" / "cfg.json").is_file()
    wrong = run("truth", store, "--truth", str(out / "run.yaml"))
    assert (wrong.returncode, "Traceback" in wrong.stderr) == (2, False)
    assert "is not the ground truth of a dictionary" in " ".join((wrong.stdout + wrong.stderr).split())


def test_its_notebook_runs(demo, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "synthetic").symlink_to(demo[1])
    assert kinds_of(execute("known_answers", tmp_path)) == kinds_of(read_notebook("known_answers"))
