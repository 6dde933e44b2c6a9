"""Pairs of tokens and features against a loop over dense activations; no bit depends on ranges or runs."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jobs.tables.profile import profile
from pipeline.statistics.profile import tallies
from pipeline.store import FeatureStore
from pipeline.store.derived import profile as site_profile
from pipeline.store.derived import token_features
from pipeline.tasks import Processes, Tasks
from schemas.tables.tables import TOKEN_COUNTS, TOKEN_FEATURES
from tests.fixtures.store import Built, build


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("store"), shards=3, documents=8)


def made(built: Built, least: int, tasks: Tasks | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    store = FeatureStore.open(built.layout.root)
    profile(store, "site", tasks, least=least)
    return tuple(store.scan_table("site", name).collect() for name in ("token_features", "token_counts"))  # type: ignore[return-value]


def by_loop(built: Built, least: int) -> tuple[list[tuple[object, ...]], list[tuple[int, ...]]]:
    """Both tables, row by row."""
    tokens, dense = built.tokens["token"].to_list(), built.dense["site"]
    rows, values = defaultdict[int, int](int), defaultdict[tuple[int, int], list[float]](list)
    for token, activations in zip(tokens, dense, strict=True):
        if token != 0:  # BOS, which is not counted
            rows[token] += 1
            for feature in np.flatnonzero(activations):
                values[token, int(feature)].append(float(activations[feature]))
    n_active = np.count_nonzero(dense, axis=0)
    pairs, kept, left_out = list[tuple[object, ...]](), defaultdict[int, int](int), defaultdict[int, int](int)
    for (token, feature), active in values.items():
        (kept if len(active) >= least else left_out)[token] += 1
        if len(active) >= least:
            total = 0.0
            for value in active:
                total += value
            n = len(active)
            pairs.append((token, feature, n, n / rows[token], n / n_active[feature], total / n))
    counts = [(token, rows[token], kept[token], left_out[token], least) for token in sorted(rows)]
    return sorted(pairs, key=lambda pair: (pair[0], -pair[2], pair[1])), counts  # type: ignore[operator]


@pytest.mark.parametrize("least", [1, 3, 10_000])
def test_both_tables_are_those_of_a_loop_over_the_rows(built: Built, least: int) -> None:
    pairs, counts = made(built, least)
    assert (dict(pairs.schema), dict(counts.schema)) == (TOKEN_FEATURES, TOKEN_COUNTS)
    assert (pairs.rows(), counts.rows()) == by_loop(built, least)
    assert counts["left_out"].sum() > 0 or least == 1


def test_no_bit_depends_on_ranges_runs_or_workers(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = made(built, 2)
    with Processes(2) as tasks:
        assert all(a.equals(b) for a, b in zip(made(built, 2, tasks), expected, strict=True))
    for range_bytes, run_pairs, group, waiting in ((1, 1, 1, 1), (1 << 14, 50, 7, 100)):
        monkeypatch.setattr(site_profile, "RANGE_BYTES", range_bytes)
        monkeypatch.setattr(token_features, "RUN_PAIRS", run_pairs)
        monkeypatch.setattr(token_features, "_GROUP", group)
        monkeypatch.setattr(tallies, "_WAITING", waiting)
        assert all(a.equals(b) for a, b in zip(made(built, 2), expected, strict=True))


def test_the_most_common_token_of_a_feature_is_that_of_this_table(built: Built) -> None:
    pairs, _ = made(built, 1)
    top = pairs.sort("feature", "n_active", "token_id", descending=[False, True, False])
    top = top.group_by("feature", maintain_order=True).first()
    profiled = FeatureStore.open(built.layout.root).scan_table("site", "profile").drop_nulls("top_token")
    assert profiled.select("feature", "top_token", "top_token_share").collect().rows() == [
        (row["feature"], row["token_id"], row["precision"]) for row in top.iter_rows(named=True)
    ]


def test_what_is_left_out_is_said(built: Built, capsys: pytest.CaptureFixture[str]) -> None:
    _, counts = made(built, 5)
    said = " ".join(capsys.readouterr().out.split())
    assert f"{counts['left_out'].sum():,} are left out, whose feature fires in fewer than 5 rows" in said


def test_a_site_in_which_nothing_fires_has_tokens_without_pairs(tmp_path: Path) -> None:
    built = build(tmp_path, shards=1, documents=1)
    store = FeatureStore.open(built.layout.root)
    pairs = token_features.TokenPairs(tmp_path, 5)
    pairs.count_rows(np.array([0, 3, 0, 1]))
    assert list(pairs.features()) == []
    assert pairs.counts().rows() == [(1, 3, 0, 0, 5), (3, 1, 0, 0, 5)]
    path = store.write_table_parts("site", "token_features", TOKEN_FEATURES, pairs.features())
    assert pl.read_parquet(path).schema == TOKEN_FEATURES  # type: ignore[arg-type]
