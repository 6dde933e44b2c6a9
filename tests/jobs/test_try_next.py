"""What `run` and `demo` say to try next: commands that work on the store as it is, quoted for a shell."""

from __future__ import annotations

import shlex
from pathlib import Path

import polars as pl
import pytest
import yaml

from jobs.lake.try_next import SUPPORT, best_features, next_commands
from jobs.tables.profile import profile
from pipeline.store import FeatureStore
from tests.fixtures.runs import extracted, run_content, run_file
from tests.jobs.conformance import end


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """A store with tables, in a folder whose name a shell would cut, of a module that no store may run."""
    folder = tmp_path_factory.mktemp("next")
    corpus = pl.read_parquet(run_content(folder)["corpus"]["path"])
    quoted = corpus.with_columns(party=pl.format("the {}'s & co", "party"))
    quoted.write_parquet(folder / "quoted.parquet")
    return extracted(
        run_file(
            folder,
            corpus={"path": str(folder / "quoted.parquet")},
            store={"root": str(folder / "it's a store")},
        )
    )


def names_of(commands: list[str]) -> list[str]:
    return [shlex.split(command)[1] for command in commands]


def test_every_command_works_on_the_store(store: FeatureStore) -> None:
    commands = next_commands(store)
    assert names_of(commands) == ["explore", "feature", "top", "rank", "verify"]
    feature = best_features(store, "mid")["feature"][0]
    assert shlex.split(commands[1])[1:] == ["feature", str(store.layout.root), str(feature)]
    assert any(word.startswith("party=the ") for word in shlex.split(commands[2]))
    for command in commands[1:]:
        assert end(*shlex.split(command)[1:]) == 0, command


def test_find_comes_with_its_table(store: FeatureStore) -> None:
    profile(store, "mid")
    command = next(each for each in next_commands(store) if " find " in each)
    assert end(*shlex.split(command)[1:]) == 0


def test_the_best_feature_has_the_largest_sigma_over_mu_of_those_with_enough_rows(
    store: FeatureStore,
) -> None:
    features = store.scan_features("mid").collect().to_dicts()
    often = [row for row in features if row["n_active"] >= SUPPORT]
    assert often
    best = max(often, key=lambda row: (row["sigma_over_mu"], -row["feature"]))
    assert best_features(store, "mid").row(0, named=True) == best


def test_sites_are_named_where_there_are_several(tmp_path: Path) -> None:
    content = run_content(tmp_path)
    (site,) = content["sites"]
    first, second = {**site, "name": "first"}, {**site, "name": "second"}
    commands = next_commands(extracted(run_file(tmp_path, sites=[first, second])))
    assert all(command.endswith("--site first") for command in commands if " top " in command)
    for command in commands[1:]:
        assert end(*shlex.split(command)[1:]) == 0, command


def test_a_store_without_tables_or_features_is_verified(tmp_path: Path) -> None:
    assert names_of(next_commands(extracted(run_file(tmp_path / "a"), tables=False))) == ["explore", "verify"]
    dense = {"sites": [{"name": "x", "hook_name": "layers.1"}], "store": {"layouts": ["dense"]}}
    assert names_of(next_commands(extracted(run_file(tmp_path / "b", **dense)))) == ["verify"]


def test_run_ends_with_them(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(run_content(tmp_path, derive={"jobs": ["stats"]})))
    assert end("run", str(path)) == 0
    lines = capfd.readouterr().out.splitlines()
    after = lines[lines.index("Try next:") + 1 :]
    assert after == [f"  {line}" for line in next_commands(FeatureStore.open(tmp_path / "store"))]
