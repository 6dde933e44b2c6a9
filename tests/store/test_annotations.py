"""Annotations: edits that are put side by side, and what they amount to."""

from __future__ import annotations

import json
import shutil
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.lake.drop import drop
from jobs.lake.gc import gc
from pipeline.store import FeatureStore
from pipeline.store.objects.verbs import write_atomic
from pipeline.store.records import annotations as module
from pipeline.store.records.annotations import (
    Annotations,
    Imported,
    annotate,
    export_edits,
    import_edits,
    read_annotations,
)
from schemas.annotations import LONGEST_NAME, LONGEST_NOTE, Annotation
from schemas.errors import InputError
from tests.fixtures.s3 import FaultyS3, dropped_after, status
from tests.fixtures.store import D_SAE, build
from tests.store.test_remote_run import copied


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "store"
    build(folder, shards=1, sites=("a", "b"))
    return folder


@pytest.fixture(params=["folder", "memory", "s3"])
def store(made: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FeatureStore]:
    """A store with the sites a and b on a folder, in memory, and on S3."""
    if request.param == "folder":
        yield FeatureStore.open(shutil.copytree(made, tmp_path / "store"))
        return
    if request.param == "s3":
        request.getfixturevalue("s3")
    scheme = "s3://lake" if request.param == "s3" else "memory:/"
    yield FeatureStore.open(copied(made, f"{scheme}/{tmp_path.name}-{tmp_path.parent.name}/store"))


@pytest.fixture
def local(made: Path, tmp_path: Path) -> FeatureStore:
    return FeatureStore.open(shutil.copytree(made, tmp_path / "local"))


def state(found: Annotations) -> dict[int, tuple[object, ...]]:
    """feature -> star, name, note."""
    return {row[0]: row[1:] for row in found.table.select("feature", "star", "name", "note").iter_rows()}


def test_the_latest_edit_of_each_feature_and_field_counts(store: FeatureStore) -> None:
    assert state(read_annotations(store, "a")) == {}
    annotate(store, "a", 3, name="wars", star=True, author="Ann")
    annotate(store, "a", 3, note="of the 19th century\nand later")
    annotate(store, "a", 7, star=True)
    annotate(store, "a", 3, name="  battles ")
    annotate(store, "b", 3, name="another site's")
    found = read_annotations(store, "a")
    assert state(found) == {
        3: (True, "battles", "of the 19th century\nand later"),
        7: (True, None, None),
    }
    assert found.table["author"].to_list() == [None, None]
    assert found.others.is_empty()
    annotate(store, "a", 3, star=False, name=None, note="")
    annotate(store, "a", 7, star=None)
    assert state(read_annotations(store, "a")) == {}
    assert state(read_annotations(store, "b")) == {3: (False, "another site's", None)}


def test_edits_at_the_same_time_all_stay_and_none_is_read_twice(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Barrier(8)

    def edit(number: int) -> None:
        start.wait()
        for feature in (1, number + 10):
            annotate(store, "a", feature, name=f"by {number}")

    threads = [threading.Thread(target=edit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seen: dict[str, Annotation] = {}
    found = state(read_annotations(store, "a", seen))
    assert len(seen) == 16
    last = max((name for name, edit in seen.items() if edit.feature == 1))
    assert found.pop(1) == (False, seen[last].name, None)
    assert found == {number + 10: (False, f"by {number}", None) for number in range(8)}
    monkeypatch.setattr(module, "read_many", lambda paths: [1 / 0 for _ in paths])
    assert state(read_annotations(store, "a", seen)) == {**found, 1: (False, seen[last].name, None)}


def test_equal_times_go_by_id_and_a_clock_that_is_behind_loses_nothing(local: FeatureStore) -> None:
    far = {"feature": 2, "time": "20991231T235959.000000Z"}
    lines = [{**far, "id": "0" * 15 + digit, "name": digit} for digit in "2a1"]
    assert import_edits(local, "a", [("here", line) for line in lines]) == Imported(3, 0, 0)
    assert state(read_annotations(local, "a")) == {2: (False, "a", None)}
    path = annotate(local, "a", 2, name="later")
    assert path.name.startswith("20991231T235959.000001Z-")
    assert state(read_annotations(local, "a")) == {2: (False, "later", None)}
    last = {"feature": 2, "time": "99991231T235959.999999Z", "name": "the last of all times"}
    import_edits(local, "a", [("here", last)])
    annotate(local, "a", 3, name="is put all the same")
    assert state(read_annotations(local, "a"))[3] == (False, "is put all the same", None)


def test_a_file_holds_what_the_format_says(local: FeatureStore) -> None:
    path = annotate(local, "a", 3, name="전쟁", star=False)
    stem = path.stem
    assert path.parent == local.layout.annotations("a")
    content = (
        '{"author":null,"feature":3,"format_version":7,"name":"전쟁","sae_digest":"0","site":"a","star":false,'
        f'"time":"{stem[:23]}"}}\n'
    )
    assert path.read_bytes().decode() == content


def test_edits_of_another_sae_are_listed_and_not_applied(store: FeatureStore) -> None:
    other = {"sae_digest": "f" * 64, "feature": 1 << 20, "name": "of a larger SAE", "star": True}
    assert import_edits(store, "a", [("x", other), ("x", {**other, "note": "y"})]) == Imported(2, 0, 2)
    annotate(store, "a", 1, star=True)
    found = read_annotations(store, "a")
    assert state(found) == {1: (True, None, None)}
    columns = ("sae_digest", "feature", "star", "name", "note")
    assert found.others.select(columns).rows() == [("f" * 64, 1 << 20, True, "of a larger SAE", "y")]
    assert not [problem for problem in store.verify().problems if "annotations" in problem]


def test_what_is_not_an_annotation_is_named_and_left_out(store: FeatureStore) -> None:
    annotate(store, "a", 3, name="good")
    folder = store.layout.annotations("a")
    good = next(iter(folder.iterdir()))
    time = good.name[:23]
    record = json.loads(good.read_bytes())
    bad = {
        f"{time}-{'0' * 16}.json": b"junk",
        f"{time}-{'1' * 16}.json": json.dumps({**record, "name": "x" * 201}).encode(),
        f"{time}-{'2' * 16}.json": json.dumps({**record, "name": "a\nb"}).encode(),
        f"{time}-{'3' * 16}.json": json.dumps({**record, "format_version": 99}).encode(),
        f"{time}-{'4' * 16}.json": json.dumps({**record, "site": "b"}).encode(),
        f"{time}-{'5' * 16}.json": json.dumps({**record, "feature": D_SAE}).encode(),
        f"{time}-{'6' * 16}.json": json.dumps({**record, "title": "x"}).encode(),
        f"19990101T000000.000000Z-{'7' * 16}.json": good.read_bytes(),
        f"20261399T000000.000000Z-{'8' * 16}.json": json.dumps(
            {**record, "time": "20261399T000000.000000Z"}
        ).encode(),
        "notes.txt": b"x",
        f"{time}-{'Z' * 16}.json": good.read_bytes(),
    }
    for name, data in bad.items():
        write_atomic(folder / name, data)
    write_atomic(folder / ".DS_Store", b"of a file manager")
    with pytest.warns(UserWarning, match=r"annotations/a/.* and 6 more"):
        found = read_annotations(store, "a")
    assert state(found) == {3: (False, "good", None)}
    problems = [problem for problem in store.verify().problems if "annotations" in problem]
    assert len(problems) == len(bad)
    assert all(any(name in problem for problem in problems) for name in bad)
    annotate(store, "a", 3, name="goes on")
    with pytest.warns(UserWarning, match="annotations/a"):
        assert state(read_annotations(store, "a")) == {3: (False, "goes on", None)}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "it edits none of star, name, note"),
        ({"name": "a" * (LONGEST_NAME + 1)}, "name: it has 201 characters: shorten it to 200"),
        ({"note": "a" * (LONGEST_NOTE + 1)}, "note: it has 10,001 characters: shorten it to 10,000"),
        ({"name": "two\nlines"}, r"name: it has the control character '\\n'"),
        ({"name": "\x1b[31mred"}, r"name: it has the control character '\\x1b'"),
        ({"note": "\x1b[31mred"}, r"note: it has the control character '\\x1b'"),
        ({"note": "\r"}, None),
        ({"name": "\ud800"}, r"control character '\\ud800'"),
        ({"star": "yes"}, "star: Input should be a valid boolean"),
        ({"star": 1}, "star: Input should be a valid boolean"),
        ({"name": 3}, "name: Input should be a valid string"),
        ({"title": "x"}, "has no field 'title': give star, name, note"),
    ],
)
def test_what_cannot_be_kept_is_one_sentence(
    local: FeatureStore, fields: dict[str, object], sentence: str | None
) -> None:
    if sentence is None:  # white space at an end goes
        annotate(local, "a", 3, **fields)  # type: ignore[arg-type]
        return
    with pytest.raises(InputError, match=f"the annotation of feature 3 .*{sentence}"):
        annotate(local, "a", 3, **fields)  # type: ignore[arg-type]
    assert not local.layout.annotations("a").exists()


def test_a_feature_or_a_site_that_is_not_there_is_refused(local: FeatureStore) -> None:
    with pytest.raises(InputError, match=f"feature {D_SAE} is not in site 'a'"):
        annotate(local, "a", D_SAE, star=True)
    with pytest.raises(InputError, match="has no site 'c'"):
        annotate(local, "c", 1, star=True)


def test_copies_of_a_store_exchange_their_edits_in_any_order(
    store: FeatureStore, local: FeatureStore, made: Path
) -> None:
    annotate(store, "a", 3, name="here", note="and\ta note")
    annotate(local, "a", 3, name="there", author="Bob")
    annotate(local, "a", 4, star=True)
    here, there = list(export_edits(store, "a")), list(export_edits(local, "a"))
    assert [edit["author"] for edit in there] == ["Bob", None]

    def lines(edits: list[dict[str, object]]) -> list[tuple[str, object]]:
        return [("line", json.loads(json.dumps(edit))) for edit in edits]

    assert import_edits(store, "a", lines(there)) == Imported(2, 0, 0)
    assert import_edits(local, "a", lines(here[::-1])) == Imported(1, 0, 0)
    assert import_edits(local, "a", lines(here)) == Imported(0, 1, 0)
    assert (
        list(export_edits(store, "a"))
        == list(export_edits(local, "a"))
        == sorted(here + there, key=lambda edit: (edit["time"], edit["id"]))
    )
    assert read_annotations(store, "a").table.equals(read_annotations(local, "a").table)
    assert state(read_annotations(local, "a")) == {3: (False, "there", "and\ta note"), 4: (True, None, None)}
    # a file of another site of the same SAE is taken over by this one
    import_edits(local, "b", lines(here))
    assert state(read_annotations(local, "b")) == {3: (False, "here", "and\ta note")}


def test_edits_without_a_time_are_made_now_in_their_order(local: FeatureStore) -> None:
    annotate(local, "a", 5, name="before")
    lines = [("line 1", {"feature": 5, "name": "one"}), ("line 2", {"feature": 5, "name": "two"})]
    assert import_edits(local, "a", lines) == Imported(2, 0, 0)
    assert state(read_annotations(local, "a")) == {5: (False, "two", None)}


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ([1], "line 2 is not a JSON object"),
        (
            {"feature": D_SAE, "star": True},
            f"line 2 is of feature {D_SAE}: the features of site 'a' are 0 to",
        ),
        ({"feature": -1, "star": True}, "line 2 cannot be kept: feature: "),
        ({"feature": "1", "star": True}, "line 2 cannot be kept: feature: "),
        ({"star": True}, "line 2 cannot be kept: feature: Field required"),
        ({"feature": 1}, "line 2 cannot be kept: it edits none of"),
        ({"feature": 1, "star": True, "id": "../x"}, "line 2 has the id '../x'"),
        ({"feature": 1, "star": True, "id": 7}, "line 2 has the id '7'"),
        ({"feature": 1, "star": True, "time": "now"}, "line 2 cannot be kept: time: "),
        ({"feature": 1, "star": True, "time": "20261399T000000.000000Z"}, "does not exist"),
        ({"feature": 1, "star": True, "format_version": 99}, "line 2 has format version 99"),
        ({"feature": 1, "name": "\x00"}, "line 2 cannot be kept: name: it has the control"),
        ({"feature": 1, "star": True, "sae_digest": "a\nb"}, "line 2 cannot be kept: sae_digest"),
    ],
)
def test_of_a_file_with_one_bad_line_nothing_is_imported(
    local: FeatureStore, line: object, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        import_edits(local, "a", [("line 1", {"feature": 1, "star": True}), ("line 2", line)])
    assert not local.layout.annotations("a").exists()


def test_a_lost_answer_puts_an_edit_once(made: Path, s3: FaultyS3, tmp_path: Path) -> None:
    store = FeatureStore.open(copied(made, f"s3://lake/{tmp_path.name}-lost"))
    s3.fail("PUT", "/annotations/", dropped_after, status(500))
    annotate(store, "a", 3, name="once")
    assert len(list(store.layout.annotations("a").iterdir())) == 1


def test_gc_leaves_annotations_and_a_dropped_sites_go_with_it(
    store: FeatureStore, capsys: pytest.CaptureFixture[str]
) -> None:
    for site in "ab":
        annotate(store, site, 3, name=f"of {site}")
    gc(store, 0, dry_run=False, force=True)
    assert state(read_annotations(store, "a")) == {3: (False, "of a", None)}
    capsys.readouterr()
    drop(str(store.layout.root), site="a", yes=True)
    assert "  annotations: 1 file, " in capsys.readouterr().out
    assert not store.layout.annotations("a").exists()
    assert state(read_annotations(store.again(), "b")) == {3: (False, "of b", None)}
    drop(str(store.layout.root), pass_name="p", yes=True)
    assert "  annotations: 1 file, " in capsys.readouterr().out
    assert not (store.layout.root / "annotations").exists() or not list(
        (store.layout.root / "annotations").iterdir()
    )


def test_a_folder_in_the_place_of_a_file_is_named(local: FeatureStore) -> None:
    annotate(local, "a", 3, name="good")
    folder = local.layout.annotations("a")
    (Path(str(folder)) / f"20260101T000000.000000Z-{'0' * 16}.json").mkdir()
    with pytest.warns(UserWarning, match="is a folder where a file should be"):
        assert state(read_annotations(local, "a")) == {3: (False, "good", None)}


def test_a_store_without_annotations_says_nothing(local: FeatureStore) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_annotations(local, "a").table.is_empty()
    assert local.layout.annotations("a").name == "a"
