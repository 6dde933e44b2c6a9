"""What every command over a store promises; the test of a job inherits it.

class TestNeighbours(CommandConformance):
    command, arguments = "neighbours", ("3",)
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

import pytest
import typer

from jobs import cli
from jobs.command.protocol import command_of
from jobs.command.registry import find
from jobs.tables.coactivation import coactivation
from jobs.tables.profile import profile
from jobs.tables.rank import rank
from tests.fixtures.runs import extracted, run_file


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store with the tables that the commands need."""
    store = extracted(run_file(tmp_path_factory.mktemp("conformance")))
    coactivation(store, "mid", k=4, support=2)
    profile(store, "mid")
    rank(store, "mid")
    return Path(str(store.layout.root))


def end(*arguments: str) -> int:
    """The exit code of `latentlake ARGUMENTS`."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    assert isinstance(stop.value.code, int)
    return stop.value.code


class CommandConformance:
    """A command that takes STORE, then `arguments`."""

    command: ClassVar[str]
    arguments: ClassVar[tuple[str, ...]] = ()

    @pytest.fixture
    def store(self, finished: Path, tmp_path: Path) -> Path:
        """A copy, so that no test sees what another one writes."""
        return Path(shutil.copytree(finished, tmp_path / "store"))

    def test_each_option_says_what_it_does(self) -> None:
        app = typer.Typer()
        app.command()(command_of(find(self.command).load()))
        for parameter in typer.main.get_command(app).params:
            assert getattr(parameter, "help", None), parameter.name

    def test_what_is_not_a_store_is_one_sentence(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert end(self.command, str(tmp_path), *self.arguments) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("latentlake: ")
        assert str(tmp_path) in line

    def test_a_site_that_is_not_there_is_one_sentence(
        self, store: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert end(self.command, str(store), *self.arguments, "--site", "other") == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "'other'" in line
        assert "mid" in line

    def test_a_second_run_gives_the_same_tables_and_changes_no_data(self, store: Path) -> None:
        def files() -> dict[str, bytes]:
            every = sorted(path for path in store.rglob("*") if path.is_file())
            return {str(path.relative_to(store)): path.read_bytes() for path in every}

        before = files()
        assert end(self.command, str(store), *self.arguments) == 0
        first = files()
        data = {name for name in before if not name.startswith(("tables", "figures", "report"))}
        assert {name: first.get(name) for name in data} == {name: before[name] for name in data}
        assert end(self.command, str(store), *self.arguments) == 0
        assert files() == first
