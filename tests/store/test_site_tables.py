"""The tables of `stats` are the same bits for any ranges, any workers, and partials of any age."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from jobs.tables.stats import stats
from pipeline import statistics
from pipeline.store import FeatureStore
from pipeline.store.derived import features as site_tables
from pipeline.store.formats.parquet import write_frame
from pipeline.store.objects.verbs import measure
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.tasks import OneProcess, Processes, Tasks
from schemas.errors import InputError
from tests.fixtures.store import D_SAE, Built, build
from tests.store.test_verification import recommit

NAMES = ("features", "l0", "examples")


def table_bytes(store: FeatureStore) -> dict[str, bytes]:
    """The content of every derived table's file."""
    return {
        f"{site}/{name}": store.layout.table(site, name).read_bytes()
        for site in store.sites
        for name in store.tables(site)
    }


def made(root: Path, tasks: Tasks | None = None) -> dict[str, bytes]:
    store = FeatureStore.open(root)
    for site in store.sites:
        stats(store, site, tasks)
    return table_bytes(store)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("store"), shards=5, sites=("site", "other"))


def test_the_examples_are_those_of_a_sort_of_everything(built: Built) -> None:
    made(built.layout.root)
    result = FeatureStore.open(built.layout.root).scan_table("site", "examples").filter(kind="top").collect()
    for feature in range(D_SAE):
        values = built.dense["site"][:, feature]
        rows = sorted(np.flatnonzero(values), key=lambda row: (-abs(values[row]), row))[:20]
        mine = result.filter(feature=feature)
        assert mine["row"].to_list() == [int(row) for row in rows]
        assert mine["activation"].to_list() == values[rows].tolist()


def test_no_bit_depends_on_ranges_batches_or_what_is_kept_in_memory(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(built.layout.root)
    monkeypatch.setattr(site_tables, "_RANGE_BYTES", 1)
    assert (
        len(site_tables.site_ranges(FeatureStore.open(built.layout.root), "site", "partials.parquet", 1)) == 3
    )
    assert made(built.layout.root) == whole
    monkeypatch.setattr(site_tables, "_BATCH_BYTES", 0)
    monkeypatch.setattr(site_tables, "_COUNT_FILES", 2)
    assert made(built.layout.root) == whole


def test_ranges_are_whole_blocks_that_cover_every_feature_once(built: Built) -> None:
    store = FeatureStore.open(built.layout.root)
    for size in (1, 900, 10**9):
        ranges = site_tables.site_ranges(store, "site", "partials.parquet", size)
        assert [feature for some in ranges for feature in some] == list(range(D_SAE))
        assert all(some.start % 16 == 0 for some in ranges)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_no_bit_depends_on_the_number_of_workers(
    built: Built, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    whole = made(built.layout.root)
    monkeypatch.setattr(site_tables, "_RANGE_BYTES", 1)
    with Processes(workers) as tasks:
        assert made(built.layout.root, tasks) == whole


def test_partials_in_one_row_group_give_the_same_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(tmp_path, shards=3)
    whole = made(tmp_path)
    store = FeatureStore.open(tmp_path)
    for record in store.shards:
        path = store.object_path("site", record.name, "partials.parquet")
        write_frame(path, pl.read_parquet(path))
        assert pq.ParquetFile(path).num_row_groups == 1
    monkeypatch.setattr(site_tables, "_RANGE_BYTES", 1)
    assert made(tmp_path) == whole
    assert built.layout.root == tmp_path


@pytest.mark.parametrize(("version", "reads"), [(2, 1), (3, 3)])
def test_partials_of_an_old_version_are_read_once_not_for_every_range(
    built: Built, monkeypatch: pytest.MonkeyPatch, version: int, reads: int
) -> None:
    whole = made(built.layout.root)
    monkeypatch.setattr(site_tables, "_RANGE_BYTES", 1)
    store, seen, read = FeatureStore.open(built.layout.root), [], ShardFiles.read_partials
    for name, plan in store.plans.items():
        monkeypatch.setitem(store.plans, name, plan.model_copy(update={"format_version": version}))

    def counted(files: ShardFiles, features: range, columns: list[str] | None = None) -> pl.DataFrame:
        seen.append(files.record.name)
        return read(files, features, columns)

    monkeypatch.setattr(ShardFiles, "read_partials", counted)
    stats(store, "site")
    assert [seen.count(record.name) for record in store.shards] == [reads] * len(store.shards)
    assert table_bytes(store) == whole
    monkeypatch.setattr(site_tables, "_WHOLE_RANGE", 32)
    assert len(site_tables.partials_ranges(store, "site")) == (2 if version == 2 else 3)
    stats(store, "site")
    assert table_bytes(store) == whole


@pytest.mark.parametrize("layouts", [["token_major"], ["feature_major"]])
def test_one_layout_is_enough(tmp_path: Path, layouts: list[str]) -> None:
    build(tmp_path / "both", shards=3, seed=4)
    build(tmp_path / "one", shards=3, seed=4, layouts=layouts)
    both, one = (
        {name: FeatureStore.open(root).scan_table("site", name).collect() for name in NAMES}
        for root in (tmp_path / "both", tmp_path / "one")
        if made(root)
    )
    assert all(both[name].equals(one[name]) for name in NAMES)


@pytest.mark.parametrize("name", ["partials.parquet", "row_counts.parquet"])
def test_no_flipped_bit_gives_other_tables(tmp_path: Path, name: str) -> None:
    build(tmp_path, shards=2)
    path = FeatureStore.open(tmp_path).object_path("site", "000001", name)
    data = path.read_bytes()
    for place in np.random.default_rng(0).choice(len(data), 20, replace=False):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(InputError, match=f"{path} is damaged"):
            stats(FeatureStore.open(tmp_path), "site")
    path.unlink()
    with pytest.raises(InputError, match=f"{path} is missing"):
        stats(FeatureStore.open(tmp_path), "site")


def test_a_flipped_bit_of_an_activation_is_an_error_of_the_query(tmp_path: Path) -> None:
    build(tmp_path, shards=1)
    path = FeatureStore.open(tmp_path).object_path("site", "000000", "postings.parquet")
    column = pq.read_metadata(path).row_group(0).column(2)
    data, last = path.read_bytes(), column.data_page_offset + column.total_compressed_size - 3
    path.write_bytes(data[:last] + bytes([data[last] ^ 1]) + data[last + 1 :])
    with pytest.raises(InputError, match=f"{path} is damaged .*CRC"):
        FeatureStore.open(tmp_path).rows_of("site", 1)


def test_postings_that_partials_do_not_count_are_an_error_that_names_both(tmp_path: Path) -> None:
    built = build(tmp_path, shards=2)
    store = FeatureStore.open(tmp_path)
    path = store.object_path("site", "000001", "postings.parquet")
    pq.write_table(pq.read_table(path).slice(1), path)
    recommit(built, path)
    with pytest.raises(InputError, match=r"postings.parquet and .*partials.parquet do not count the same"):
        stats(FeatureStore.open(tmp_path), "site", OneProcess())


def test_partials_of_a_feature_that_the_sae_has_not_are_an_error(tmp_path: Path) -> None:
    built = build(tmp_path, shards=2)
    path = FeatureStore.open(tmp_path).object_path("site", "000001", "partials.parquet")
    frame = pl.read_parquet(path)
    last = pl.int_range(pl.len()) == pl.len() - 1
    write_frame(path, frame.with_columns(feature=pl.when(last).then(99).otherwise("feature").cast(pl.UInt32)))
    recommit(built, path)
    with pytest.raises(InputError, match="partials"):
        stats(FeatureStore.open(tmp_path), "site", OneProcess())
    assert measure(path)[0] > 0


def test_partials_have_row_groups_of_whole_feature_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pl.DataFrame({"feature": pl.Series([0, 3, 15, 16, 40, 41, 47, 90], dtype=pl.UInt32)})
    frame = frame.with_columns(n=pl.col("feature") * 2)
    for size, groups in (
        (0, [[0, 3, 15], [16], [40, 41, 47], [90]]),
        (20, [[0, 3, 15], [16, 40, 41, 47], [90]]),
    ):
        monkeypatch.setattr("pipeline.store.formats.parquet._FRAME_GROUP_BYTES", size)
        write_frame(tmp_path / "f.parquet", frame, feature_block=16)
        file = pq.ParquetFile(tmp_path / "f.parquet")
        read = [file.read_row_group(n)["feature"].to_pylist() for n in range(file.num_row_groups)]
        assert read == groups
        assert pl.read_parquet(tmp_path / "f.parquet").equals(frame)
    write_frame(tmp_path / "f.parquet", statistics.empty_state(), feature_block=16)
    assert pl.read_parquet(tmp_path / "f.parquet").height == 0
