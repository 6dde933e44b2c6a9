"""A chunk that is not there is never read as zeros: of CSR, x and site weights, by every job."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

from jobs.cli import app
from jobs.command.exits import run_app
from jobs.tables.stats import stats
from pipeline.store import FeatureStore
from pipeline.store.formats.dense import DenseWriter, open_dense
from pipeline.store.objects.paths import ObjectPath, forget_clients, store_path
from pipeline.store.objects.verbs import write_atomic
from pipeline.store.records.site import open_site_rows, read_site_weights, write_site_weights
from schemas.errors import InputError
from schemas.layout import Layout, StorePath
from tests.fixtures.store import D_SAE, build, planned_site

OLD = Path(__file__).parents[1] / "data" / "store-v6"


@pytest.fixture(scope="module")
def built_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites, each with a decoder whose first chunk is all zeros, and the tables of `stats`."""
    root = tmp_path_factory.mktemp("built")
    built = build(root, shards=1, sites=("a", "b"))
    for name in ("a", "b"):
        weights = {
            "W_dec": np.arange(D_SAE * 4, dtype=np.float32).reshape(D_SAE, 4),
            "b_enc": np.zeros(D_SAE),
        }
        write_site_weights(built.layout, "p", planned_site(name), weights, {})
        stats(FeatureStore.open(root), name)
    return root


@pytest.fixture
def root(built_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(built_root, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def memory() -> Iterator[str]:
    forget_clients()
    yield "memory://chunks"
    forget_clients()


def upload(root: Path, url: str) -> StorePath:
    """A copy of a store on object storage."""
    target = store_path(url)
    for file in root.rglob("*"):
        if file.is_file():
            write_atomic(target / file.relative_to(root).as_posix(), file.read_bytes())
    return target


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run_app(app, list(arguments))
    return int(ended.value.code or 0)


JOBS = (
    ("coactivation", "{root}", "--site", "a"),
    ("cluster", "{root}", "--site", "a"),
    ("match", "{root}", "a", "b"),
)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job[0])
@pytest.mark.parametrize("lost", ["W_dec/c/0/0", "W_dec/c", "W_dec"])
def test_a_job_refuses_weights_of_which_a_chunk_is_missing_and_leaves_its_tables(
    root: Path, job: tuple[str, ...], lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [part.format(root=root) for part in job]
    assert run(*arguments) == 0
    before = {path: path.read_bytes() for path in (root / "tables").rglob("*.parquet")}
    place = root / "passes" / "p" / "sites" / "a.zarr" / lost
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    capsys.readouterr()
    assert run(*arguments) == 2
    assert "W_dec" in (error := capsys.readouterr().err)
    assert "missing" in error
    assert error.count("\n") == 1
    assert before == {path: path.read_bytes() for path in (root / "tables").rglob("*.parquet")}


@pytest.mark.parametrize("name", ["W_dec/c/0/0", "b_enc/c/0", "W_dec/zarr.json"])
def test_weights_on_object_storage_are_refused_too(root: Path, memory: str, name: str) -> None:
    target = upload(root, memory)
    FeatureStore.open(target).site_weights("a")
    whole = Layout(target).site("p", "a")
    assert isinstance(whole, ObjectPath)
    whole.client.delete(f"{whole.key}/{name}".removeprefix("/"))
    with pytest.raises(InputError, match="missing"):
        FeatureStore.open(target).site_weights("a")
    if name.startswith("W_dec"):
        with pytest.raises(InputError, match="missing"):
            open_site_rows(Layout(target), "p", "a", "W_dec")


def test_zeros_are_written_so_that_a_missing_chunk_differs_from_them(root: Path) -> None:
    path = Layout(root).site("p", "a") / "b_enc" / "c" / "0"
    assert not read_site_weights(Layout(root), "p", "a")[0]["b_enc"].any()
    path.unlink()
    with pytest.raises(InputError, match="1 chunks of b_enc are missing"):
        read_site_weights(Layout(root), "p", "a", ("b_enc",))


def _as_in_version_6(layout: Layout, values: np.ndarray) -> Path:
    """W_dec as version 6 wrote it: chunks of zeros are left out."""
    write_site_weights(layout, "p", planned_site(), {"W_dec": values}, {})
    path = layout.site("p", "site")
    assert isinstance(path, Path)
    attributes = dict(zarr.open_group(path, mode="r").attrs)
    group = zarr.open_group(path, mode="w", zarr_format=3, attributes={**attributes, "format_version": 6})
    array = group.create_array("W_dec", shape=values.shape, dtype=values.dtype, chunks=(10, 4))
    array[...] = values
    return path


def test_in_an_old_store_an_absent_chunk_counts_as_zeros_only_where_the_sha256_agrees(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    values = np.arange(D_SAE * 4, dtype=np.float32).reshape(D_SAE, 4)
    values[10:20] = 0
    path = _as_in_version_6(layout, values)
    assert not (path / "W_dec" / "c" / "1" / "0").exists()
    rows = open_site_rows(layout, "p", "site", "W_dec")
    assert rows is not None
    np.testing.assert_array_equal(rows[5:25], values[5:25])
    np.testing.assert_array_equal(read_site_weights(layout, "p", "site")[0]["W_dec"], values)
    (path / "W_dec" / "c" / "2" / "0").unlink()
    with pytest.raises(InputError, match="2 chunks of W_dec are missing"):
        open_site_rows(layout, "p", "site", "W_dec")
    with pytest.raises(InputError, match="its weights are not those that were written"):
        read_site_weights(layout, "p", "site")


@pytest.mark.parametrize("name", ["data", "indices", "indptr"])
def test_a_csr_of_which_a_chunk_is_missing_is_refused(root: Path, name: str) -> None:
    [path] = root.glob(f"passes/p/data/*/*/a/csr.zarr/{name}/c/0")
    path.unlink()
    with pytest.raises(InputError, match=f"1 chunks of {name} are missing"):
        FeatureStore.open(root).csr("a", "000000")


@pytest.fixture
def x(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """An x.zarr of two Zarr shards of 32 chunks, the second not full, with chunks of zeros, and its rows."""
    path, width = tmp_path / "x.zarr", 1 << 17
    rows = np.zeros((4 * 32 + 12, width), np.float32)
    rows[::9] = np.arange(1, width + 1)
    with DenseWriter(path, len(rows), width, "float32") as writer:
        writer.add(rows, np.ones(len(rows), bool))
        writer.finish(path)
    return path, rows


def lose_inner_chunk(path: Path, number: int) -> None:
    """A Zarr shard whose index lacks a chunk, with the checksum of the index made right."""
    import google_crc32c

    data = bytearray(path.read_bytes())
    index = len(data) - 4 - 16 * 32
    data[index + 16 * number : index + 16 * (number + 1)] = b"\xff" * 16
    data[-4:] = google_crc32c.value(bytes(data[index:-4])).to_bytes(4, "little")
    path.write_bytes(data)


def test_a_chunk_that_a_zarr_shard_lacks_is_an_error_for_any_slice_of_the_shard(
    x: tuple[Path, np.ndarray], memory: str
) -> None:
    path, rows = x
    np.testing.assert_array_equal(open_dense(path)[:], rows)
    lose_inner_chunk(path / "c" / "0" / "0", 5)
    places: list[StorePath] = [path, upload(path, memory)]
    for place in places:
        array = open_dense(place)
        for read in (lambda a: a[:], lambda a: a[20:24], lambda a: a[0], lambda a: a.oindex[np.array([21])]):
            with pytest.raises(ValueError, match=r"1 chunks in .*c/0/0 are missing"):
                read(array)
        np.testing.assert_array_equal(array[128:], rows[128:])


def test_a_zarr_shard_that_is_gone_or_cut_is_an_error(x: tuple[Path, np.ndarray]) -> None:
    path, _ = x
    array, shard = open_dense(path), path / "c" / "0" / "0"
    data = shard.read_bytes()
    shard.write_bytes(data[-4 - 16 * 32 :])  # the index alone
    with pytest.raises(ValueError, match=r"c/0/0 is cut off|checksum|Invalid|buffer"):
        array[4:8]
    shard.unlink()
    with pytest.raises(ValueError, match="is missing"):
        array[60:61]
    with pytest.raises(ValueError, match="some of its chunks are missing"):
        open_dense(path)


def test_strays_in_a_zarr_folder_change_neither_numbers_nor_checks(
    root: Path, memory: str, recwarn: pytest.WarningsRecorder
) -> None:
    before = FeatureStore.open(root)
    weights, matrix = before.site_weights("a")[0], before.csr("a", "000000").toarray()
    for folder in [*root.glob("passes/p/data/*/*/*/csr.zarr"), *root.glob("passes/p/sites/*.zarr")]:
        for below in (folder, *(f for f in folder.rglob("*") if f.is_dir())):
            for name in (".DS_Store", "._0", "Thumbs.db", "desktop.ini", ".nfs0000000001"):
                (below / name).write_bytes(b"stray")
    stores = [FeatureStore.open(root), FeatureStore.open(upload(root, memory))]
    for store in stores:
        assert store.verify().problems == []
        np.testing.assert_array_equal(store.site_weights("a")[0]["W_dec"], weights["W_dec"])
        np.testing.assert_array_equal(store.csr("a", "000000").toarray(), matrix)
    assert not recwarn.list
