"""`hf:` specs: what is asked of the hub, what comes back, and every way to be refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.utils import LocalEntryNotFoundError, filter_repo_objects

from pipeline.saes import load_sae, read_metadata, sae_digest
from pipeline.saes.files.hub import parse, snapshot
from schemas.errors import InputError
from tests.kit import write_sae
from tests.saes.parity import rows_of


class Hub:
    """A hub with one repository, which copies what the patterns ask for into a cache."""

    def __init__(self, remote: Path, cache: Path) -> None:
        self.remote, self.cache = remote, cache
        self.requests: list[tuple[str, str | None]] = []

    def snapshot_download(self, repo_id: str, revision: Any = None, allow_patterns: Any = None) -> str:
        self.requests.append((repo_id, revision))
        files = [str(f.relative_to(self.remote)) for f in self.remote.rglob("*") if f.is_file()]
        for name in filter_repo_objects(files, allow_patterns=allow_patterns):
            target = self.cache / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((self.remote / name).read_bytes())
        self.cache.mkdir(exist_ok=True)
        return str(self.cache)

    def downloaded(self) -> set[str]:
        return {str(f.relative_to(self.cache)) for f in self.cache.rglob("*") if f.is_file()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    remote = tmp_path / "remote"
    write_sae(remote / "saes" / "l1", "topk", k=8)
    write_sae(remote / "saes" / "l10", "standard")
    (remote / "config.json").write_text("{}")
    (remote / "README.md").write_text("")
    hub = Hub(remote, tmp_path / "cache")
    snapshot.cache_clear()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_the_sae_of_a_folder_is_that_of_the_same_folder_on_disk(hub: Hub) -> None:
    spec, local = "hf:me/saes-of-mine/saes/l1", str(hub.remote / "saes" / "l1")
    assert sae_digest(spec) == sae_digest(local)
    assert read_metadata(spec) == read_metadata(local)
    x = rows_of(16)
    np.testing.assert_array_equal(load_sae(spec).encode(x).data, load_sae(local).encode(x).data)
    assert hub.requests == [("me/saes-of-mine", None)]  # so that all three are of one revision


def test_only_the_saes_folder_is_downloaded_and_configurations_above_it(hub: Hub) -> None:
    snapshot("hf:me/mine/saes/l1")
    assert hub.downloaded() == {"saes/l1/cfg.json", "saes/l1/sae_weights.safetensors", "config.json"}


def test_a_file_comes_with_the_configuration_next_to_it(hub: Hub) -> None:
    spec = "hf:me/mine/saes/l1/sae_weights.safetensors@v2"
    assert read_metadata(spec).architecture == "topk"
    assert hub.requests == [("me/mine", "v2")]
    assert hub.downloaded() == {"saes/l1/cfg.json", "saes/l1/sae_weights.safetensors"}


def test_a_whole_repository_is_requested_with_a_dot(tmp_path: Path, hub: Hub) -> None:
    hub.remote = write_sae(tmp_path / "other", "standard")
    assert read_metadata("hf:me/mine/.").architecture == "standard"


def test_signs_of_a_pattern_in_a_path_mean_themselves(hub: Hub) -> None:
    write_sae(hub.remote / "saes" / "l[1]")
    snapshot("hf:me/mine/saes/l[1]")
    assert {name for name in hub.downloaded() if "cfg" in name} == {"saes/l[1]/cfg.json"}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("hf:me/mine/a/b", ("me/mine", "a/b", None)),
        ("hf:me/mine/a/b/@0f1e2d", ("me/mine", "a/b", "0f1e2d")),
        ("hf:me/mine/.@refs/pr/1", ("me/mine", ".", "refs/pr/1")),
    ],
)
def test_specs_are_taken_apart(spec: str, expected: tuple[str, str, str | None]) -> None:
    assert parse(spec) == expected


@pytest.mark.parametrize(
    "name",
    ["", "me", "me/mine", "me/mine/", "/mine/a", "me//a", "me/mine/../x", "me/mine/a/../../x", "me/mine//a",
     "me/mine/a/./b", "me/mine/a\\..\\b", "../mine/a", "me/mine/a@"],
)  # fmt: skip
def test_a_malformed_spec_is_refused_before_anything_is_requested(hub: Hub, name: str) -> None:
    with pytest.raises(InputError, match=r"is malformed: write hf:OWNER/REPOSITORY/PATH"):
        load_sae(f"hf:{name}")
    assert hub.requests == []


def test_a_folder_that_is_not_there_is_named(hub: Hub) -> None:
    with pytest.raises(InputError, match=r"the repository me/mine has no saes/l2 at this revision"):
        load_sae("hf:me/mine/saes/l2")


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("Cannot find it in the cache. And more\nlines"),
        ValueError("Repo id must be"),
        OSError(),
    ],
)
def test_a_hub_that_gives_nothing_is_one_sentence(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*request: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(
        InputError, match=r"SAE hf:me/mine/a could not be downloaded from the hub \("
    ) as raised:
        load_sae("hf:me/mine/a")
    assert "\n" not in str(raised.value)
    assert "And more" not in str(raised.value)
