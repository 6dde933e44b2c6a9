"""A tokenize that was killed, or is at work, is seen from the store alone, with what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from jobs.cli import main
from jobs.lake.tokenize import tokenize
from pipeline.store.objects.verbs import locked, write_atomic
from pipeline.store.records.tokens import read_links
from pipeline.store.records.unfinished import unfinished_tokens
from schemas.layout import Layout
from tests.fixtures.runs import run_content, run_file, write_corpus

SLOW_TOKENIZE = """
import sys, time
from pipeline.tokens import sharding
real = sharding._write_shard
def slow(*arguments):
    time.sleep(0.3)
    return real(*arguments)
sharding._write_shard = slow
from jobs.cli import main
main(sys.argv[1:])
"""


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    shown = capsys.readouterr()
    return int(ended.value.code or 0), " ".join((shown.out + shown.err).split())


def killed_tokenize(folder: Path, *options: str) -> Path:
    """SIGKILL a tokenize once it has written a new token shard; the store's root."""
    run, root = folder / "run.yaml", folder / "store"
    before = len(list(root.glob("tokens/[!.]*.parquet")))
    child = subprocess.Popen([sys.executable, "-c", SLOW_TOKENIZE, "tokenize", str(run), *options])
    try:
        deadline = time.monotonic() + 60
        while len(list(root.glob("tokens/[!.]*.parquet"))) <= before:
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    return root


@pytest.mark.slow
def test_a_killed_tokenize_is_reported_and_the_next_one_fixes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_content(tmp_path)))
    root = killed_tokenize(tmp_path)
    code, output = said(["status", str(root)], capsys)
    assert code == 2
    assert "there is no lake.json yet" in output
    assert "a tokenize was interrupted; run `latentlake tokenize RUN.yaml` again" in output
    assert said(["tokenize", str(tmp_path / "run.yaml")], capsys)[0] == 0
    code, output = said(["status", str(root)], capsys)
    assert (code, "unfinished" in output) == (0, False)

    content = run_content(tmp_path, corpus={"path": str(write_corpus(tmp_path / "more.parquet", seed=1))})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    killed_tokenize(tmp_path, "--append")
    code, output = said(["status", str(root)], capsys)
    assert code == 0
    assert "unfinished: " in output
    assert "run `latentlake tokenize RUN.yaml --append` again" in output
    assert said(["tokenize", str(tmp_path / "run.yaml"), "--append"], capsys)[0] == 0
    assert "unfinished" not in said(["status", str(root)], capsys)[1]


def test_one_at_work_is_reported_from_one_that_was_interrupted(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "store")
    assert unfinished_tokens(layout, []) is None
    with locked(layout.tokenize_lock, "x"):
        message = unfinished_tokens(layout, [])
        assert message is not None
        assert message.endswith("a tokenize is running; wait until it ends")
        write_atomic(layout.tokens("000000"), b"x" * 2_000_000)
        message = unfinished_tokens(layout, [])
        assert message is not None
        assert "holds 1 token shards (2.0 MB)" in message
        assert message.endswith("a tokenize is running; wait until it ends")
    message = unfinished_tokens(layout, [])
    assert message is not None
    assert "was interrupted; run `latentlake tokenize RUN.yaml` again" in message


def test_a_store_whose_link_was_not_put_is_unfinished_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lake's record is put before the link: a kill may fall between the two."""
    tokenize(run_file(tmp_path))
    layout = Layout(tmp_path / "store")
    assert unfinished_tokens(layout, read_links(layout)) is None
    layout.corpus_link(0).unlink()
    code, output = said(["status", str(layout.root)], capsys)
    assert code == 0
    assert "0 documents" in output
    assert "unfinished: " in output
    assert "run `latentlake tokenize RUN.yaml` again" in output
