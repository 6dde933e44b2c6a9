"""Neighbours are those of a dense count of pairs, exactly, whatever the blocks and workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import sparse
from typer.testing import CliRunner

from jobs import coactivation as module
from jobs.cli import app
from jobs.coactivation import NEIGHBOURS, coactivation, neighbours
from pipeline.executors.tasks import Processes
from pipeline.store import FeatureStore
from schemas.errors import InputError
from tests.store.build import D_SAE, Built, build


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("store"), shards=4)


def brute_force(built: Built, k: int, support: int) -> list[tuple[int, int, int, int, int, float, int]]:
    active = (built.dense["site"] != 0).astype(np.int64)
    both, n = active.T @ active, active.sum(axis=0)
    found = []
    for a in range(D_SAE):
        others = [b for b in range(D_SAE) if b != a and both[a, b] >= support]
        ranked = sorted(others, key=lambda b: (-both[a, b] / (n[a] + n[b] - both[a, b]), b))[:k]
        found += [
            (a, b, int(both[a, b]), int(n[a]), int(n[b]), both[a, b] / (n[a] + n[b] - both[a, b]), rank)
            for rank, b in enumerate(ranked)
        ]
    return found


@pytest.mark.parametrize(("k", "support"), [(5, 1), (100, 1), (3, 12), (2, 10**6)])
def test_neighbours_are_those_of_a_dense_count(built: Built, k: int, support: int) -> None:
    table = coactivation(FeatureStore.open(built.layout.root), "site", k=k, support=support)
    assert dict(table.schema) == NEIGHBOURS
    assert table.rows() == brute_force(built, k, support)


def test_no_bit_depends_on_the_blocks_or_on_the_layouts(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = coactivation(FeatureStore.open(built.layout.root), "site", support=2)
    for layouts in (["token_major"], ["feature_major"]):
        build(tmp_path / layouts[0], shards=4, layouts=layouts)
        monkeypatch.setattr(module, "COUNTS_BYTES", 7 * 4 * D_SAE)
        assert coactivation(FeatureStore.open(tmp_path / layouts[0]), "site", support=2).equals(whole)
    assert coactivation(FeatureStore.open(built.layout.root), "site", support=2).equals(whole)


@pytest.mark.slow
def test_no_bit_depends_on_the_number_of_workers(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore.open(built.layout.root)
    whole = coactivation(store, "site")
    monkeypatch.setattr(module, "COUNTS_BYTES", 5 * 4 * D_SAE)
    with Processes(3) as tasks:
        assert coactivation(store, "site", tasks).equals(whole)


def test_counts_beyond_31_bits_stay_whole() -> None:
    class Dense:
        """A shard in which features 0 and 1 share 2^30 rows."""

        def read_pattern(self) -> sparse.csr_matrix:
            return sparse.csr_matrix(np.array([[1, 1]], np.int32))

        def read_pattern_of(self, features: range, pattern: sparse.csr_matrix) -> sparse.csr_matrix:
            return sparse.csr_matrix(np.full((len(features), 1), 1 << 30, np.int32))

    n_active = np.array([3 << 30, 4 << 30])
    table = neighbours([Dense()] * 3, n_active, 5, 1, range(2))  # type: ignore[list-item]
    assert table["n_both"].to_list() == [3 << 30] * 2
    assert table["jaccard"].to_list() == [0.75] * 2


def test_the_command_writes_the_table_that_readers_name(built: Built) -> None:
    path = built.layout.table("site", "neighbours")
    path.unlink(missing_ok=True)
    with pytest.raises(InputError, match="run `latentlake coactivation`"):
        FeatureStore.open(built.layout.root).scan_table("site", "neighbours")
    done = CliRunner().invoke(app, ["coactivation", str(built.layout.root), "-k", "4", "--support", "3"])
    table = FeatureStore.open(built.layout.root).scan_table("site", "neighbours").collect()
    assert table.rows() == brute_force(built, 4, 3)
    assert f"{table.height:,} neighbours of {table['feature'].n_unique()} features" in done.output


def test_a_site_without_a_shard_has_no_neighbours_to_find(tmp_path: Path) -> None:
    build(tmp_path, shards=1, commits=0)
    with pytest.raises(InputError, match="no committed shard"):
        coactivation(FeatureStore.open(tmp_path), "site")
    assert pl.DataFrame(schema=NEIGHBOURS).is_empty()
