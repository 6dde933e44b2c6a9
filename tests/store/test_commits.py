"""A shard is committed once; a twin that wrote the same bytes gives way, another is reported."""

from __future__ import annotations

import threading
from pathlib import Path

import polars as pl
import pytest

from pipeline.store.records.commits import (
    NondeterminismError,
    commit,
    manifest_row,
    read_commit,
    read_commits,
    receipts_digest,
    write_manifest,
)
from schemas.errors import InputError
from schemas.layout import Layout
from schemas.records import DataObject, Receipt, SiteReceipt
from schemas.tables.tables import MANIFEST


def receipt(shard: str = "000000", attempt: str = "a", sha256: str = "1", seconds: float = 1.0) -> Receipt:
    return Receipt(
        shard=shard,
        attempt=attempt,
        plan_hash="plan",
        tokens_sha256="tokens",
        rows=10,
        sites={"s": SiteReceipt(nnz=7, underflow=0, rounding=0.0)},
        objects=(
            DataObject(path="s/csr.zarr", bytes=5, sha256=sha256),
            DataObject(path="s/partials.parquet", bytes=6, sha256="2"),
        ),
        seconds={"write": seconds, "read": 0.5},
        peak_rss_bytes=1,
        environment={"host": attempt},
    )


def with_attempt(layout: Layout, made: Receipt) -> Receipt:
    layout.attempt("p", made.shard, made.attempt).mkdir(parents=True)
    return made


def test_the_first_commit_is_in_force_and_is_read_back(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert read_commit(layout, "p", "000000") is None
    assert read_commits(layout, "p") == {}
    assert commit(layout, "p", receipt()) == receipt()
    assert read_commit(layout, "p", "000000") == receipt()
    assert read_commits(layout, "p") == {"000000": receipt()}


def test_a_slower_twin_gets_the_winners_receipt_and_its_attempt_is_removed(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    first, second = with_attempt(layout, receipt()), with_attempt(layout, receipt(attempt="b", seconds=9))
    commit(layout, "p", first)
    assert commit(layout, "p", second) == first
    assert layout.attempt("p", "000000", "a").is_dir()
    assert not layout.attempt("p", "000000", "b").exists()


def test_committing_the_same_attempt_again_removes_nothing(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    ours = with_attempt(layout, receipt())
    commit(layout, "p", ours)
    assert commit(layout, "p", ours) == ours
    assert layout.attempt("p", "000000", "a").is_dir()


def test_a_twin_with_other_bytes_is_loud_and_stays_to_be_looked_at(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    commit(layout, "p", receipt())
    other = with_attempt(layout, receipt(attempt="b", sha256="3"))
    with pytest.raises(NondeterminismError, match=r"shard 000000: attempt b .* attempt a .* s/csr.zarr"):
        commit(layout, "p", other)
    assert layout.attempt("p", "000000", "b").is_dir()
    assert read_commit(layout, "p", "000000") == receipt()


def test_a_twin_that_had_less_memory_may_differ_in_low_bits(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    commit(layout, "p", receipt())
    smaller = with_attempt(layout, receipt(attempt="b", sha256="3").model_copy(update={"batch_contexts": 2}))
    assert commit(layout, "p", smaller) == receipt()
    assert not layout.attempt("p", "000000", "b").exists()


def test_of_many_racing_twins_all_get_one_receipt(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    got: list[Receipt] = []
    twins = [with_attempt(layout, receipt(attempt=f"t{i}")) for i in range(6)]
    threads = [
        threading.Thread(target=lambda t=twin: got.append(commit(layout, "p", t)))  # type: ignore[misc]
        for twin in twins
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({r.attempt for r in got}) == 1
    left = [p.name for p in layout.attempt("p", "000000", "x").parent.iterdir()]
    assert left == [got[0].attempt]


def test_temporary_files_are_no_commits_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    commit(layout, "p", receipt())
    (layout.commits("p") / ".000001.json.0.tmp").write_bytes(b"half")
    assert list(read_commits(layout, "p")) == ["000000"]
    layout.commit("p", "000001").write_bytes(b"{half")
    with pytest.raises(InputError, match=r"000001.json is damaged"):
        read_commits(layout, "p")


def test_a_receipt_of_a_newer_format_stops(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    newer = receipt().model_copy(update={"format_version": 99})
    commit(layout, "p", newer)
    with pytest.raises(InputError, match=r"format version 99, .* update latentlake"):
        read_commit(layout, "p", "000000")


def test_the_digest_depends_on_the_data_and_on_nothing_else() -> None:
    a, b = receipt(), receipt("000001")
    digest = receipts_digest([a, b])
    assert digest == receipts_digest([b, receipt(attempt="other", seconds=5)])
    assert digest != receipts_digest([a])
    assert digest != receipts_digest([receipt(sha256="9"), b])


def test_the_manifest_lists_what_is_committed_and_what_was_quarantined(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_manifest(layout, "p", [manifest_row(receipt("000001"))], {"000000": "NaN at hook", "000001": "old"})
    frame = pl.read_parquet(layout.manifest("p"))
    assert frame.schema == MANIFEST
    assert frame.rows() == [
        ("000000", "quarantined", None, None, None, None, None, "NaN at hook"),
        ("000001", "committed", "a", 10, 7, 11, 1.5, None),
    ]
    write_manifest(layout, "p", [], {})
    assert pl.read_parquet(layout.manifest("p")).height == 0


def test_a_twin_of_other_libraries_or_another_device_may_differ(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    commit(layout, "p", receipt())
    other = receipt(attempt="b", sha256="3").model_copy(update={"environment": {"host": "a", "torch": "9"}})
    assert commit(layout, "p", with_attempt(layout, other)) == receipt()
    assert not layout.attempt("p", "000000", "b").exists()
    with pytest.raises(NondeterminismError, match="its plan"):
        commit(layout, "p", other.model_copy(update={"plan_hash": "other", "objects": receipt().objects}))
