"""The commands over a store, each held to what `CommandConformance` says."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import pytest

from jobs.command.registry import GROUPS
from tests.jobs.conformance import CommandConformance, finished  # noqa: F401 - a fixture


class TestStats(CommandConformance):
    command = "stats"


class TestExamples(CommandConformance):
    command = "examples"


class TestProfile(CommandConformance):
    command = "profile"


class TestRank(CommandConformance):
    command = "rank"


class TestCoactivation(CommandConformance):
    command = "coactivation"


class TestCluster(CommandConformance):
    command = "cluster"


class TestTop(CommandConformance):
    command, arguments = "top", ("3",)


class TestFeature(CommandConformance):
    command, arguments = "feature", ("3",)


class TestNeighbours(CommandConformance):
    command, arguments = "neighbours", ("3",)


class TestFind(CommandConformance):
    command, arguments = "find", ("--where", "n_active > 0")


class TestPlots(CommandConformance):
    command = "plots"


class TestReport(CommandConformance):
    command = "report"


class TestCompact(CommandConformance):
    command = "compact"


class TestFidelity(CommandConformance):
    command, arguments = "fidelity", ("--model", "tests.kit:tiny_lm")


class TestElicit(CommandConformance):
    command, arguments = "elicit", ("w1 w2 w3", "--model", "tests.kit:tiny_lm")


class TestAnnotate(CommandConformance):
    command, arguments = "annotate", ("3", "--name", "wars", "--star")


class TestAnnotations(CommandConformance):
    command = "annotations"


class TestExplanations(CommandConformance):
    command, arguments = "explanations", ("explanations.jsonl",)

    @pytest.fixture(autouse=True)
    def _in_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "explanations.jsonl").write_text('{"index": "3", "description": "wars"}\n')


class TestHeatmap(CommandConformance):
    command, arguments = "heatmap", ("--features", "1,2,3", "--out", "heatmap.png")

    @pytest.fixture(autouse=True)
    def _in_a_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)


def test_each_command_that_walks_over_sites_is_held_to_it() -> None:
    want_other_stores = {
        "attribute",
        "logits",
        "importance",
        "images",
        "steer",
        "diff",
        "truth",
    }  # they want other stores
    over_sites = {
        command.name
        for commands in GROUPS.values()
        for command in commands
        if {"site", "sites"} & set(signature(command.load()).parameters) and command.name != "drop"
    }
    held = {each.command for each in CommandConformance.__subclasses__()}
    assert over_sites - want_other_stores == held
