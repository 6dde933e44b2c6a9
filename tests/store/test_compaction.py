"""A compaction holds what the shards' postings hold, is published whole, and is read as far as it goes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.store import FeatureStore
from pipeline.store.derived import features as site_tables
from pipeline.store.records.site import write_site_weights
from pipeline.store.upkeep import compaction
from pipeline.tasks import OneProcess, Processes
from schemas.errors import InputError
from schemas.records import Compaction
from tests.fixtures.store import D_SAE, Built, build, commit_shard, random_features


def compacted(root: Path, site: str = "site") -> FeatureStore:
    """The store with a compaction of all that is committed, opened anew."""
    compaction.compact(FeatureStore.open(root), site, OneProcess())
    return FeatureStore.open(root)


def digests(store: FeatureStore) -> list[str]:
    result = store.compacted("site")
    assert result is not None
    return [file.sha256 for file in result.record.files]


def sites(built: Built) -> None:
    for planned in built.plan.sites:
        write_site_weights(built.layout, "p", planned, {"W_dec": np.eye(3, dtype=np.float32)}, {})


def commit_next(built: Built, number: int) -> None:
    """Commit a shard of a store of which not all are."""
    record = built.shards[number]
    first, last = record.row_start, record.row_start + record.rows
    frame = built.tokens.filter(pl.col("row").is_between(first, last - 1))
    features = random_features(np.random.default_rng(number), (frame["token"] != 0).to_numpy())
    commit_shard(built.layout, built.plan, record, frame, {"site": features})


def test_it_is_one_file_per_block_sorted_with_statistics_and_a_page_index(tmp_path: Path) -> None:
    built = build(tmp_path, shards=4)
    store = compacted(tmp_path)
    result = store.compacted("site")
    assert [path.name for path in result.paths] == [
        "00000000.parquet",
        "00000016.parquet",
        "00000032.parquet",
    ]
    feature, row = np.nonzero(built.dense["site"].T)
    frame = pl.concat([pl.read_parquet(path) for path in result.paths])
    assert frame["feature"].to_list() == feature.tolist()
    assert frame["row"].to_list() == row.tolist()
    assert frame["activation"].cast(pl.Float32).to_list() == built.dense["site"][row, feature].tolist()
    column = pq.read_metadata(result.paths[1]).row_group(0).column(0)
    assert (column.statistics.min, column.statistics.max) == (16, 31)
    assert column.has_offset_index
    assert column.has_column_index


@pytest.mark.parametrize(("group", "memory"), [(7, 1 << 20), (50, 60), (3, 1), (1 << 18, 200)])
def test_no_activation_depends_on_groups_or_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int, memory: int
) -> None:
    build(tmp_path, shards=4)
    plain = FeatureStore.open(tmp_path)
    before = [plain.rows_of("site", feature) for feature in range(D_SAE)]
    monkeypatch.setattr(compaction, "GROUP_NNZ", group)
    monkeypatch.setattr(compaction, "IN_MEMORY_NNZ", memory)
    monkeypatch.setattr(compaction, "_RANGE_BYTES", 1)
    store = compacted(tmp_path)
    for feature in range(D_SAE):
        assert all(map(np.array_equal, store.rows_of("site", feature), before[feature]))
    sizes = [
        pq.read_metadata(path).row_group(n).num_rows
        for path in store.compacted("site").paths
        for n in range(pq.read_metadata(path).num_row_groups)
    ]
    assert max(sizes) <= group
    assert [result for result in store.verify().problems if "site.zarr" not in result] == []


def test_queries_give_what_they_gave_and_read_no_shard(tmp_path: Path) -> None:
    build(tmp_path, shards=4)
    plain = FeatureStore.open(tmp_path)
    before = [plain.contexts("site", feature, 5) for feature in range(D_SAE)]
    scanned = plain.scan_activations("site").collect().sort("feature", "row")
    store = compacted(tmp_path)
    for record in store.shards:
        store.object_path("site", record.name, "postings.parquet").unlink()
    assert all(store.contexts("site", f, 5).equals(result) for f, result in enumerate(before))
    assert store.scan_activations("site").collect().equals(scanned)
    only = store.scan_activations("site").filter(pl.col("feature") == 3).collect()
    assert only.equals(scanned.filter(pl.col("feature") == 3))


def test_after_an_append_the_rest_is_read_from_shards_until_it_is_compacted_again(tmp_path: Path) -> None:
    built = build(tmp_path, shards=4, commits=2)
    old = compacted(tmp_path).compacted("site")
    commit_next(built, 3)
    commit_next(built, 2)
    store = FeatureStore.open(tmp_path)
    assert [record.name for record in store.uncompacted("site")] == ["000002", "000003"]
    fresh = build(tmp_path / "fresh", shards=4, commits=2)
    commit_next(fresh, 2)
    commit_next(fresh, 3)
    plain = FeatureStore.open(tmp_path / "fresh")
    for feature in range(D_SAE):
        assert all(map(np.array_equal, store.rows_of("site", feature), plain.rows_of("site", feature)))
    new = compacted(tmp_path)
    assert new.uncompacted("site") == []
    assert new.compacted("site").marker != old.marker
    assert [result.marker for result in new.compactions("site")] == sorted(
        [old.marker, new.compacted("site").marker]
    )
    assert len(compacted(tmp_path / "fresh").compacted("site").record.files) == 3


def test_rows_ascend_where_a_shard_was_committed_late(tmp_path: Path) -> None:
    built = build(tmp_path, shards=3, commits=1)
    commit_next(built, 2)
    compacted(tmp_path)
    commit_next(built, 1)
    store = FeatureStore.open(tmp_path)
    for feature in range(D_SAE):
        rows, _ = store.rows_of("site", feature)
        assert (np.diff(rows.astype(np.int64)) > 0).all()
        assert (
            len(rows) == store.scan_activations("site").filter(pl.col("feature") == feature).collect().height
        )


def test_without_its_marker_or_of_other_receipts_it_does_not_exist(tmp_path: Path) -> None:
    build(tmp_path, shards=2)
    store = compacted(tmp_path)
    marker = store.compacted("site").marker
    content = marker.read_bytes()
    marker.write_text(json.dumps(json.loads(content) | {"receipts": "other"}))
    assert FeatureStore.open(tmp_path).compacted("site") is None
    marker.unlink()
    marker.with_name(f".{marker.name}.x.tmp").write_bytes(content[:9])
    store = FeatureStore.open(tmp_path)
    assert store.compacted("site") is None
    assert len(store.uncompacted("site")) == 2


def test_an_interrupted_compaction_leaves_no_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path, shards=3)
    monkeypatch.setattr(compaction, "_RANGE_BYTES", 1)
    write, seen = compaction._write_block, []

    def fail(*arguments):
        if seen:
            raise KeyboardInterrupt
        seen.append(write(*arguments))
        return seen[0]

    monkeypatch.setattr(compaction, "_write_block", fail)
    with pytest.raises(KeyboardInterrupt):
        compaction.compact(FeatureStore.open(tmp_path), "site", OneProcess())
    monkeypatch.undo()
    assert len(list(tmp_path.rglob("00000000.parquet"))) == 1
    assert FeatureStore.open(tmp_path).compactions("site") == []
    assert len(compacted(tmp_path).compactions("site")) == 1


def test_damage_and_other_content_are_found_by_verify(tmp_path: Path) -> None:
    built = build(tmp_path, shards=3)
    sites(built)
    store = compacted(tmp_path)
    report = store.verify()
    assert report.problems == []
    assert report.objects == 3 + 3 * 4 + 1 + 3 + 1
    result = store.compacted("site")
    path, remedy = result.paths[1], f"; delete {result.marker} and run `latentlake compact`"
    whole, frame = path.read_bytes(), pl.read_parquet(result.paths[1])
    path.write_bytes(whole[:-1] + b"x")
    (problem,) = FeatureStore.open(tmp_path).verify().problems
    assert problem.startswith(f"{path} is damaged: its sha256")
    assert problem.endswith(remedy)
    last = pl.int_range(pl.len()) == pl.len() - 1
    for other in (
        frame.head(-1),
        frame.with_columns(row=pl.col("row") + last),
        pl.concat([frame, frame.tail(1)]),
        frame[[1, 0, *range(2, len(frame))]],
    ):
        other.write_parquet(path)
        recorded(store, path)
        problems = FeatureStore.open(tmp_path).verify().problems
        assert problems == [f"{path} does not hold the activations of its shards{remedy}"]


def recorded(store: FeatureStore, path: Path) -> None:
    """Make the marker agree with a changed file."""
    from pipeline.store.objects.verbs import measure

    result = store.compacted("site")
    size, sha256 = measure(path)
    files = [
        replace(file, bytes=size, sha256=sha256) if file.path.endswith(path.name) else file
        for file in result.record.files
    ]
    result.marker.write_bytes(result.record.model_copy(update={"files": tuple(files)}).to_json())


def test_a_block_that_is_left_out_is_found_by_verify(tmp_path: Path) -> None:
    built = build(tmp_path, shards=2)
    sites(built)
    result = compacted(tmp_path).compacted("site")
    record = result.record.model_copy(update={"files": result.record.files[1:]})
    result.marker.write_bytes(record.to_json())
    store = FeatureStore.open(tmp_path)
    assert store.verify().problems == [f"{result.marker} does not hold all activations of its shards"]
    assert len(store.rows_of("site", 3)[0]) == 0


def test_what_cannot_be_compacted_is_said(tmp_path: Path) -> None:
    build(tmp_path / "csr", shards=1, layouts=["token_major"])
    with pytest.raises(InputError, match=r"no postings to compact: .*\['token_major'\]"):
        compacted(tmp_path / "csr")
    build(tmp_path / "none", shards=1, commits=0)
    with pytest.raises(InputError, match="no committed shard"):
        compacted(tmp_path / "none")


def test_the_command_says_what_it_wrote_and_does_nothing_twice(tmp_path: Path) -> None:
    built = build(tmp_path, shards=2)
    nnz = np.count_nonzero(built.dense["site"])
    first = CliRunner().invoke(app, ["compact", str(tmp_path)]).output
    assert f"{nnz:,} activations of 2 shards in 3 files" in first
    assert "nothing to do, all 2 shards" in CliRunner().invoke(app, ["compact", str(tmp_path)]).output
    (marker,) = (tmp_path / "passes" / "p" / "compactions").glob("*.json")
    record: Compaction = Compaction.from_json(marker.read_bytes(), "marker")
    assert record.shards == ("000000", "000001")


def test_status_and_top_say_what_came_after_it(tmp_path: Path) -> None:
    built = build(tmp_path, shards=3, commits=2)
    compacted(tmp_path)
    pl.DataFrame({"token_id": range(50), "text": ["w"] * 50}).write_parquet(built.layout.vocabulary)
    assert "compaction of site: 2 shards\n" in CliRunner().invoke(app, ["status", str(tmp_path)]).output
    commit_next(built, 2)
    said = CliRunner().invoke(app, ["status", str(tmp_path)]).output
    assert "compaction of site: 2 shards (1 shards were added since; run `latentlake compact`)" in said
    said = CliRunner().invoke(app, ["top", str(tmp_path), "3"]).output
    assert "(1 shards were added after the compaction: `latentlake compact` makes this faster)" in said


@pytest.mark.slow
@pytest.mark.parametrize("workers", [3])
def test_no_byte_depends_on_the_number_of_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr(compaction, "_RANGE_BYTES", 1)
    built = build(tmp_path, shards=5)
    sites(built)
    one = digests(compacted(tmp_path))
    with Processes(workers) as tasks:
        compaction.compact(FeatureStore.open(tmp_path), "site", tasks)
        store = FeatureStore.open(tmp_path)
        assert [[f.sha256 for f in result.record.files] for result in store.compactions("site")] == [one, one]
        assert store.verify(tasks).problems == []


@pytest.mark.slow
def test_300_tiny_shards_make_the_same_files_as_one_block_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(tmp_path, shards=300, documents=1)
    one = digests(compacted(tmp_path))
    assert len(site_tables.site_ranges(FeatureStore.open(tmp_path), "site", "postings.parquet", 1 << 20)) == 1
    monkeypatch.setattr(compaction, "_RANGE_BYTES", 1)
    store = compacted(tmp_path)
    assert digests(store) == one
    assert len(store.rows_of("site", 3)[0]) == np.count_nonzero(built.dense["site"][:, 3])


@pytest.mark.parametrize("content", [b"{half", b'{"format_version": 99}', b"{}"])
def test_a_marker_that_cannot_be_read_counts_as_none_and_is_reported(tmp_path: Path, content: bytes) -> None:
    sites(build(tmp_path, shards=2))
    marker = compacted(tmp_path).compacted("site").marker
    marker.write_bytes(content)
    store, remedy = FeatureStore.open(tmp_path), f"delete {marker} and run `latentlake compact`"
    (problem,) = store.verify().problems
    assert problem.startswith(f"compaction {marker} cannot be read (")
    assert problem.endswith(remedy)
    with pytest.warns(UserWarning, match="cannot be read") as message:
        result = [store.compacted("site"), store.compacted("site")]
    assert result == [None, None]
    assert len(message) == 1
    assert len(store.rows_of("site", 3)[0]) > 0


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    sites(build(tmp_path, shards=2))
    result = compacted(tmp_path).compacted("site")
    result.paths[0].unlink()
    store = FeatureStore.open(tmp_path)
    remedy = f"delete {result.marker} and run `latentlake compact`"
    for ask in (lambda: store.rows_of("site", 3), lambda: store.scan_activations("site")):
        with pytest.raises(InputError, match=f"{result.paths[0]} is missing: .*{remedy}"):
            ask()
    assert store.verify().problems == [f"{result.paths[0]} is missing; {remedy}"]


def test_verify_looks_at_the_compaction_in_use_alone(tmp_path: Path) -> None:
    built = build(tmp_path, shards=3, commits=2)
    sites(built)
    old = compacted(tmp_path).compacted("site")
    commit_next(built, 2)
    compacted(tmp_path)
    old.paths[0].unlink()
    assert FeatureStore.open(tmp_path).verify().problems == []


def test_the_checksum_is_that_of_the_file_before_it_is_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.store.objects.paths import store_path
    from pipeline.store.objects.verbs import measure

    measured = []
    monkeypatch.setattr(compaction, "measure", lambda path: measured.append(path) or measure(path))
    root = store_path("memory://compaction-measured")
    piece = compaction.Piece(
        range(2), np.array([1, 1]), np.arange(2, dtype=np.uint64), np.ones(2, np.float16)
    )

    class Shard:
        activation_dtype = "float16"

    file = compaction._write_block(root / "site", 0, iter([piece]), [Shard()])
    assert [isinstance(path, Path) for path in measured] == [True]
    assert (file.bytes, file.sha256) == measure(root / "site" / "00000000.parquet")
