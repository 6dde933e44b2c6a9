"""What file managers and file systems leave in a store's folders changes nothing, wherever it lies."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs.export.folder import new_export
from jobs.lake.status import status
from jobs.tables.stats import stats
from pipeline.models.loaders.transformer_lens import digest
from pipeline.sources.text.source import _files_at
from pipeline.store import FeatureStore
from pipeline.store.records.commits import read_commits
from pipeline.store.records.site import write_site_weights
from pipeline.store.records.unfinished import unfinished_tokens
from pipeline.store.upkeep.compaction import compact
from pipeline.store.upkeep.garbage import find_garbage
from pipeline.tasks import OneProcess
from schemas.layout import Layout
from tests.fixtures.store import D_SAE, build, planned_site

STRAYS = (
    *(".DS_Store", "._000000.json", "._features.parquet", "._000000.parquet", "Thumbs.db", "desktop.ini"),
    *(".nfs000000000a1b2c3d00000001", ".fuse_hidden0000000100000002", "000000 (copy).json", "notes.txt"),
    *("features (copy).parquet", "000000.parquet.bak", "Icon\r"),
)
FOLDERS = (".snapshot", "lost+found", "@eaDir")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clean")
    built = build(root, shards=2)
    store = FeatureStore.open(root)
    stats(store, "site")
    weights = {"W_dec": np.arange(D_SAE * 4, dtype=np.float32).reshape(D_SAE, 4)}
    write_site_weights(built.layout, "p", planned_site(), weights, {})
    compact(store, "site", OneProcess())
    return root


@pytest.fixture
def root(clean: Path, tmp_path: Path) -> Path:
    """The same store with strays in every folder, and some folders of them."""
    shutil.copytree(clean, root := tmp_path / "store")
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        for name in STRAYS:
            (folder / name).write_bytes(b"stray")
        for name in FOLDERS:
            (folder / name).mkdir()
            (folder / name / "zarr.json").write_bytes(b"stray")
    return root


def test_a_store_among_strays_reads_verifies_and_computes_as_without_them(
    clean: Path, root: Path, recwarn: pytest.WarningsRecorder
) -> None:
    one, two = FeatureStore.open(clean), FeatureStore.open(root)
    assert two.verify().problems == []
    assert status(str(root))
    assert list(two.plans) == list(one.plans)
    assert two.tables("site") == one.tables("site")
    assert two.receipts_digest("site") == one.receipts_digest("site")
    np.testing.assert_array_equal(two.rows_of("site", 3)[1], one.rows_of("site", 3)[1])
    np.testing.assert_array_equal(two.csr("site", "000000").data, one.csr("site", "000000").data)
    np.testing.assert_array_equal(two.site_weights("site")[0]["W_dec"], one.site_weights("site")[0]["W_dec"])
    stats(two, "site")
    assert two.scan_features("site").collect().equals(one.scan_features("site").collect())
    assert not recwarn.list


def test_strays_are_neither_commits_nor_tokens_nor_garbage(root: Path) -> None:
    layout = Layout(root)
    assert list(read_commits(layout, "p")) == ["000000", "000001"]
    assert unfinished_tokens(layout, FeatureStore.open(root).links) is None
    assert find_garbage(layout, 0) == []


def test_tokens_of_strays_alone_are_no_interrupted_tokenize(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    for name in STRAYS:
        if not name.endswith(".parquet") or name.startswith("."):
            (tmp_path / "tokens" / name).write_bytes(b"stray")
    assert unfinished_tokens(Layout(tmp_path), []) is None


def test_a_models_digest_is_of_its_own_files(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    before = digest(str(tmp_path))
    for name in ("._model.safetensors", ".DS_Store", "Thumbs.db", "._config.json"):
        (tmp_path / name).write_bytes(b"stray")
    assert digest(str(tmp_path)) == before


def test_a_corpus_is_of_its_own_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    for name in ("._a.txt", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"stray")
    assert [path.name for path in _files_at(tmp_path)[1]] == ["a.txt"]


def test_an_export_goes_into_a_folder_of_strays_alone(clean: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".DS_Store").write_bytes(b"stray")
    with new_export(str(out), FeatureStore.open(clean), {"sites": ["site"]}) as folder:
        (folder / "a").write_bytes(b"a")
    assert (out / "a").read_bytes() == b"a"
