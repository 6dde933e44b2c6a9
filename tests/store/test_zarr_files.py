"""Zarr that may run code, or that latentlake does not write, is refused before anything of it is read."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr

from pipeline.store import FeatureStore
from pipeline.store.formats.dense import DenseWriter, open_dense
from pipeline.store.objects.verbs import readable
from pipeline.store.records.site import open_site_rows, write_site_weights
from schemas.errors import InputError
from schemas.layout import Layout
from tests.fixtures.store import D_SAE, build, planned_site


class Canary:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store, in a process in which numcodecs unpickles, as it did before 0.16.6."""
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True)
    root = tmp_path / "store"
    built = build(root, shards=1)
    weights = {"W_dec": np.ones((D_SAE, 4), np.float32)}
    write_site_weights(built.layout, "p", planned_site(), weights, {})
    return root


def version_2(folder: Path, shape: list[int], canary: Path) -> None:
    """A Zarr 2 array whose one chunk is unpickled when it is read."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    about = {
        "zarr_format": 2,
        "shape": shape,
        "chunks": shape,
        "dtype": "|O",
        "order": "C",
        "fill_value": None,
    }
    about |= {"compressor": None, "filters": [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 4}]}
    (folder / ".zarray").write_text(json.dumps(about))
    (folder / ".".join("0" for _ in shape)).write_bytes(pickle.dumps(Canary(canary)))


def csr(root: Path) -> tuple[Path, Callable[[], Any]]:
    [path] = root.glob("passes/p/data/000000/a/site/csr.zarr")
    return path, lambda: FeatureStore.open(root).csr("site", "000000")


def weights(root: Path) -> tuple[Path, Callable[[], Any]]:
    return root / "passes/p/sites/site.zarr", lambda: FeatureStore.open(root).site_weights("site")


def rows(root: Path) -> tuple[Path, Callable[[], Any]]:
    return root / "passes/p/sites/site.zarr", lambda: open_site_rows(Layout(root), "p", "site", "W_dec")


def dense(root: Path) -> tuple[Path, Callable[[], Any]]:
    path = root / "x.zarr"
    with DenseWriter(path, 10, 4, "float32") as writer:
        writer.add(np.ones((10, 4), np.float32), np.ones(10, bool))
        writer.finish(path)

    def read() -> Any:
        with readable(path):
            return open_dense(path)[:]

    return path, read


PLACES = {"csr": csr, "weights": weights, "rows": rows, "dense": dense}


def test_the_canary_sings_where_zarr_reads_by_itself(tmp_path: Path, root: Path) -> None:
    version_2(tmp_path / "array", [1], tmp_path / "canary")
    with contextlib.suppress(Exception):  # what it makes of what it has unpickled
        zarr.open_array(tmp_path / "array", mode="r")[:]
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("whole", [True, False], ids=["in its place", "below it"])
def test_an_array_of_zarr_2_is_refused_and_runs_nothing(
    root: Path, tmp_path: Path, place: str, whole: bool
) -> None:
    path, read = PLACES[place](root)
    read()
    names = (
        [None] if whole or place == "dense" else sorted(each.name for each in path.iterdir() if each.is_dir())
    )
    for name in names:
        version_2(path if name is None else path / name, [1], tmp_path / "canary")
    with pytest.raises(InputError):
        read()
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("codec", ["numcodecs.pickle", "pickle", "numcodecs.json2", "gzip2", {"no": "name"}])
def test_a_codec_that_latentlake_does_not_write_is_named_and_never_run(
    root: Path, tmp_path: Path, place: str, codec: Any
) -> None:
    path, read = PLACES[place](root)
    metadata = path / "zarr.json" if place == "dense" else next(path.glob("*/zarr.json"))
    content = json.loads(metadata.read_text())
    named = codec if isinstance(codec, dict) else {"name": codec, "configuration": {}}
    content["codecs"] = [*content["codecs"], named]
    metadata.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"names the codec .* do not trust this store"):
        read()


CHANGES: dict[str, Any] = {
    "zarr_format": 2,
    "data_type": "string",
    "shape": [10**13, 10**13, 3],
    "chunk_key_encoding": {"name": "v2", "configuration": {"separator": "."}},
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0]}},
    "storage_transformers": [{"name": "numcodecs.pickle"}],
    "codecs": None,
}


@pytest.mark.parametrize("key", CHANGES)
@pytest.mark.parametrize("place", PLACES)
def test_metadata_that_no_array_of_ours_has_is_damage(root: Path, place: str, key: str) -> None:
    path, read = PLACES[place](root)
    metadata = path / "zarr.json" if place == "dense" else next(path.glob("*/zarr.json"))
    content = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(content | {key: CHANGES[key]}))
    with pytest.raises(InputError, match="is damaged"):
        read()


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"[" * 100_000, b'{"zarr_format":3,"zarr_format":3}'])
@pytest.mark.parametrize("place", PLACES)
def test_metadata_that_is_no_json_is_damage(root: Path, place: str, data: bytes) -> None:
    path, read = PLACES[place](root)
    (path / "zarr.json").write_bytes(data)
    with pytest.raises(InputError, match="is damaged"):
        read()


def test_metadata_within_a_group_s_own_is_not_taken_for_that_of_its_arrays(
    root: Path, tmp_path: Path
) -> None:
    path, read = csr(root)
    content = json.loads((path / "zarr.json").read_text())
    inner = json.loads((path / "data" / "zarr.json").read_text())
    inner["codecs"] = [{"name": "numcodecs.pickle", "configuration": {}}]
    content["consolidated_metadata"] = {
        "kind": "inline",
        "must_understand": False,
        "metadata": {"data": inner},
    }
    (path / "zarr.json").write_text(json.dumps(content))
    assert read().nnz
    assert not (tmp_path / "canary").exists()
