"""`--json`: the rows alone on standard output, of every view; `--version`; what a shell completes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from jobs import cli
from jobs.command.completion import complete_run_file, complete_site, complete_store
from jobs.command.registry import EXPORTS, GROUPS
from jobs.tables.coactivation import coactivation
from jobs.tables.profile import profile
from jobs.tables.rank import rank
from jobs.terminal.json_output import plain
from jobs.terminal.strips import AFTER, BEFORE
from pipeline.store import FeatureStore
from schemas import __version__
from tests.fixtures.runs import extracted, run_file


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    store = extracted(run_file(tmp_path_factory.mktemp("json")))
    coactivation(store, "mid", k=4, support=2)
    profile(store, "mid", least=1)
    rank(store, "mid")
    return store


def printed(capfd: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """The value on standard output, which holds nothing else; people's lines are on standard error."""
    with pytest.raises(SystemExit) as stop:
        cli.main([*map(str, arguments), "--json"])
    out, err = capfd.readouterr()
    assert (stop.value.code, out.count("\n"), err != "") == (0, 1, True), err
    return json.loads(out)


def rows_of(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return json.loads(json.dumps(plain(frame)))  # type: ignore[no-any-return]


def test_each_view_prints_its_rows(store: FeatureStore, capfd: pytest.CaptureFixture[str]) -> None:
    root = store.layout.root
    feature = int(store.scan_features("mid").sort("n_active").last().collect()["feature"][0])
    top = printed(capfd, "top", root, feature, "-k", 3)
    best = store.contexts("mid", feature, 3, before=BEFORE, after=AFTER)
    assert [row["row"] for row in top] == best["row"].to_list()
    assert [row["tokens"] for row in top] == [store.pieces(ids) for ids in best["token_ids"]]
    page = printed(capfd, "feature", root, feature)
    assert page["features"] == rows_of(store.scan_features("mid").filter(feature=feature).collect())
    assert len(page["examples"]) > 5
    near = printed(capfd, "neighbours", root, feature, "-k", 2)
    assert [row["rank"] for row in near] == [0, 1]
    fits = printed(capfd, "find", root, "--where", "n_active > 0", "-n", 4)
    assert len(fits) == 4
    assert (
        fits[0]["frequency"] == store.scan_features("mid").select(pl.col("frequency").max()).collect().item()
    )
    window = printed(capfd, "rank", root, "--window", "0:3", "--window", "5:7")["mid"]
    assert [[row["rank"] for row in rows] for rows in window] == [[0, 1, 2], [5, 6]]
    status = printed(capfd, "status", root)
    assert (status["passes"][0]["is_finished"], status["shards"]) == (True, len(store.shards))
    assert {"site": "mid", "name": "features", "is_stale": False} in status["tables"]


def test_nothing_found_is_an_empty_list_and_a_mistake_prints_nothing(
    store: FeatureStore, capfd: pytest.CaptureFixture[str]
) -> None:
    assert printed(capfd, "find", store.layout.root, "--where", "frequency > 2") == []
    with pytest.raises(SystemExit) as stop:
        cli.main(["find", str(store.layout.root), "--where", "nosuch > 2", "--json"])
    out, err = capfd.readouterr()
    assert (stop.value.code, out, err.startswith("latentlake: --where")) == (2, "", True)


def test_values_that_json_lacks() -> None:
    frame = pl.DataFrame({"x": [float("nan"), float("inf"), 0.5], "y": [[1.0], [float("nan")], []]})
    assert plain(frame) == [{"x": None, "y": [1.0]}, {"x": None, "y": [None]}, {"x": 0.5, "y": []}]
    assert plain({"p": Path("a"), "t": (1, None, True)}) == {"p": "a", "t": [1, None, True]}


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"latentlake {__version__}\n")


def completed(words: str, folder: Path) -> list[str]:
    """What bash offers for the last of some words."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "_LATENTLAKE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    program = "from jobs.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return [line for line in done.stdout.splitlines() if line]


def test_a_shell_completes_commands_options_stores_and_sites(store: FeatureStore, tmp_path: Path) -> None:
    names = {command.name for group in GROUPS.values() for command in group} | {"export"}
    assert set(completed("latentlake ", tmp_path)) == names
    assert completed("latentlake neigh", tmp_path) == ["neighbours"]
    assert set(completed("latentlake export ", tmp_path)) == {command.name for command in EXPORTS}
    assert "--where" in completed("latentlake find x --", tmp_path)
    root = Path(str(store.layout.root))
    (root.parent / "run.yaml").write_text("x: 1\n")
    assert completed("latentlake top st", root.parent) == ["store"]
    assert "run.yaml" in completed("latentlake run ", root.parent)
    assert completed("latentlake top store --site ", root.parent) == ["mid"]
    assert completed("latentlake top nosuch --site ", root.parent) == []


def test_what_is_completed_is_what_is_there(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(str(store.layout.root))
    (tmp_path / ".hidden.yaml").touch()
    (tmp_path / "a.yml").touch()
    (tmp_path / "folder").mkdir()
    assert complete_run_file(f"{tmp_path}/") == [f"{tmp_path}/a.yml", f"{tmp_path}/folder/"]
    assert complete_run_file(str(tmp_path / "nosuch/x")) == []
    assert str(root) in complete_store(f"{root.parent}/s")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", f"latentlake top {root} 3 --site m")
    assert (complete_site("m"), complete_site("x")) == (["mid"], [])
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", f"latentlake top {tmp_path} nosuch.yaml")
    assert complete_site("") == []
