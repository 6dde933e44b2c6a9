"""Stores on Google's and Azure's object storage are those on a folder; `clouds.py` says what stands in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.tables.stats import stats
from pipeline.store import FeatureStore
from pipeline.store.objects import remote
from pipeline.store.objects import verbs as objects
from pipeline.store.objects.paths import forget_clients, store_path
from schemas.errors import InputError
from tests.fixtures.clouds import AZURITE, running_azurite, running_google, use_azurite
from tests.fixtures.runs import extracted, run_file
from tests.store.test_object_path import check_reading
from tests.store.test_remote_objects import race
from tests.store.test_remote_run import bytes_of, digests

NO_AZURITE = "azurite-blob is not on the PATH: npm install -g azurite"


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with running_azurite(tmp_path_factory.mktemp("azurite")) as port:
        yield port


@pytest.fixture(
    params=["gs", pytest.param("az", marks=pytest.mark.skipif(AZURITE is None, reason=NO_AZURITE))]
)
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A prefix of a bucket or container that is there."""
    forget_clients()
    if request.param == "gs":
        with running_google(request.getfixturevalue("moto"), monkeypatch):
            yield "gs://lake/google"
    else:
        use_azurite(monkeypatch, request.getfixturevalue("azurite"))
        yield "az://lake/azure"
    forget_clients()


def test_it_answers_as_a_folder_would(url: str) -> None:
    check_reading(store_path(f"{url}/reading"))


def test_exactly_one_of_eight_racing_writers_wins_and_the_self_test_passes(url: str) -> None:
    root = store_path(f"{url}/race")
    for number in range(5):
        winners = race(root / f"{number}", 8)
        assert len(winners) == 1
        assert (root / f"{number}").read_bytes() == winners[0]
    objects.self_test(root)
    assert len(list(root.iterdir())) == 5


def test_a_large_file_goes_in_parts_and_what_is_removed_is_gone(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PART", 5 << 20)
    monkeypatch.setattr("pipeline.store.objects.paths._ONE_READ", 1 << 22)
    root, data = store_path(f"{url}/large"), bytes(range(256)) * (12 << 12)
    objects.write_atomic(root / "a", data)
    objects.write_atomic(root / "b", b"x")
    assert (root / "a").read_bytes() == data
    with (root / "a").open("rb") as file:
        file.seek(-6, 2)
        assert file.read() == data[-6:]
    objects.remove(root / "b")
    objects.remove(root / "never")
    assert [name for name, _, _ in objects.walk(root)] == ["a"]
    objects.remove_tree(root)
    assert not root.exists()


def test_a_bucket_that_is_missing_is_a_sentence(url: str) -> None:
    nowhere = store_path(f"{url[:5]}nowhere/a")
    for ask in (
        lambda: objects.write_atomic(nowhere / "x", b""),
        nowhere.exists,
        lambda: list(nowhere.iterdir()),
    ):
        with pytest.raises(InputError, match=r"nowhere/a.* is in a bucket that does not exist"):
            ask()


@pytest.mark.slow
def test_a_run_there_gives_the_bytes_of_a_run_on_a_folder(url: str, tmp_path: Path) -> None:
    here = extracted(run_file(tmp_path))
    there = extracted(run_file(tmp_path, store={"root": f"{url}/some/prefix"}))
    for store in (here, there):
        stats(store, "mid")
    roots = here.layout.root, there.layout.root
    expected = bytes_of(roots[0])
    assert len(expected) > 40
    assert bytes_of(roots[1]) == expected
    assert digests(roots[1]) == digests(roots[0])
    again = FeatureStore.open(f"{url}/some/prefix")
    assert again.verify().problems == []
    mine, theirs = (store.scan_activations("mid").filter(feature=3).collect() for store in (again, here))
    assert mine.height > 0
    assert mine.equals(theirs)
