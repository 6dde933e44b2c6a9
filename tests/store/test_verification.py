"""Every kind of damage is found, and named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.store import FeatureStore
from pipeline.store.formats.parquet import write_frame
from pipeline.store.objects.verbs import measure
from pipeline.store.records.site import write_site_weights
from pipeline.store.records.tables import RECEIPTS_KEY, VERSION_KEY
from pipeline.store.upkeep.verification import VerifyReport
from schemas.errors import InputError
from tests.fixtures.store import D_SAE, Built, build
from tests.fixtures.tokens import feature_table


@pytest.fixture
def built(tmp_path: Path) -> Built:
    built = build(tmp_path, shards=2, sites=("site", "other"))
    store = FeatureStore.open(tmp_path)
    for site in store.sites:
        table = feature_table(
            store.fold_partials(site), store.totals(site), D_SAE, store.fold_row_counts(site)
        )
        store.write_table(site, "features", table)
    for planned in built.plan.sites:
        write_site_weights(built.layout, "p", planned, {"W_dec": np.eye(3, dtype=np.float32)}, {})
    return built


def verify(built: Built) -> VerifyReport:
    return FeatureStore.open(built.layout.root).verify()


def place(built: Built, name: str, site: str = "site") -> Path:
    return FeatureStore.open(built.layout.root).object_path(site, "000001", name)


def recommit(built: Built, *paths: Path) -> None:
    """Make the receipt agree with changed files, so that only their content is wrong."""
    marker = built.layout.commit("p", "000001")
    receipt = json.loads(marker.read_bytes())
    attempt = built.layout.attempt("p", "000001", "a")
    for item in receipt["objects"]:
        if attempt / item["path"] in paths:
            item["bytes"], item["sha256"] = measure(attempt / item["path"])
    marker.write_text(json.dumps(receipt))


def test_a_sound_store_has_no_problem_and_all_of_it_is_counted(built: Built) -> None:
    report = verify(built)
    assert (report.problems, report.stale) == ([], [])
    assert report.objects == 2 + 2 * 2 * 4 + 2 + 1 + 2
    assert report.nonzeros == sum(np.count_nonzero(dense) for dense in built.dense.values())
    assert report.statistics > 2 * D_SAE
    assert report.bytes > 10_000


@pytest.mark.parametrize("name", ["postings.parquet", "partials.parquet", "row_counts.parquet"])
def test_truncated_flipped_and_missing_files_are_named(built: Built, name: str) -> None:
    path = place(built, name)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert verify(built).problems == [f"{path} has {len(whole) - 3:,} bytes, its record says {len(whole):,}"]
    path.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    (problem,) = verify(built).problems
    assert problem.startswith(f"{path} is damaged: its sha256 is {measure(path)[1]}")
    path.unlink()
    assert verify(built).problems == [f"{path} is missing"]


def test_a_damaged_chunk_of_the_csr_is_found(built: Built) -> None:
    chunk = place(built, "csr.zarr") / "data" / "c" / "0"
    data = bytearray(chunk.read_bytes())
    data[-1] ^= 1
    chunk.write_bytes(data)
    (problem,) = verify(built).problems
    assert problem.startswith(f"{chunk.parents[2]} is damaged")


def test_a_damaged_token_shard_is_found(built: Built) -> None:
    path = built.layout.tokens("000000")
    path.write_bytes(path.read_bytes()[:-1])
    (problem,) = verify(built).problems
    assert problem.startswith(f"{path} has ")


def test_partials_that_are_not_those_of_the_activations_are_found(built: Built) -> None:
    path = place(built, "partials.parquet")
    frame = pl.read_parquet(path)
    frame.with_columns(n_active=pl.col("n_active") + 1).write_parquet(path)
    recommit(built, path)
    problems = verify(built).problems
    assert f"{path} differs from a recomputation in n_active" in problems


def test_row_counts_that_are_not_those_of_the_activations_are_found(built: Built) -> None:
    path = place(built, "row_counts.parquet", "other")
    pl.read_parquet(path).with_columns(rows=pl.col("rows") * 2).write_parquet(path)
    recommit(built, path)
    assert verify(built).problems == [f"{path} differs from a recomputation in rows"]


def test_layouts_that_do_not_agree_are_found(built: Built) -> None:
    path = place(built, "postings.parquet")
    frame = pl.read_parquet(path)
    value = pl.col("activation").cast(pl.Float32) * pl.when(pl.int_range(pl.len()) == 5).then(2).otherwise(1)
    frame.with_columns(activation=value.cast(pl.Float16)).write_parquet(path)
    recommit(built, path)
    (problem,) = verify(built).problems
    assert problem == (
        "shard 000001 of site site (a): csr.zarr and postings.parquet do not hold the same activations"
    )


def test_a_wrong_count_in_the_receipt_is_found(built: Built) -> None:
    marker = built.layout.commit("p", "000001")
    receipt = json.loads(marker.read_bytes())
    receipt["sites"]["site"]["nnz"] += 1
    marker.write_text(json.dumps(receipt))
    (problem,) = verify(built).problems
    assert "activations, the CSR" in problem


def test_receipts_of_another_plan_or_of_other_tokens_are_found(built: Built) -> None:
    marker = built.layout.commit("p", "000001")
    receipt = json.loads(marker.read_bytes()) | {"plan_hash": "x", "tokens_sha256": "y"}
    marker.write_text(json.dumps(receipt))
    problems = verify(built).problems
    assert f"{marker} was made under a different plan than {built.layout.plan('p')}" in problems
    assert f"{marker} was made from different tokens than {built.layout.tokens('000001')}" in problems


def test_a_feature_table_that_is_not_that_of_the_activations_is_found(built: Built) -> None:
    store = FeatureStore.open(built.layout.root)
    table = pl.read_parquet(built.layout.table("site", "features"))
    path = store.write_table("site", "features", table.with_columns(n_active=pl.col("n_active") + 1))
    assert verify(built).problems == [f"{path} differs from a recomputation in n_active"]
    path.write_bytes(b"PAR1 and no more")
    (problem,) = verify(built).problems
    assert problem.startswith(f"{path} cannot be compared: ")


def test_a_stale_feature_table_is_said_and_is_no_problem(built: Built) -> None:
    path = built.layout.table("site", "features")
    frame = pl.read_parquet(path)
    write_frame(path, frame, {RECEIPTS_KEY: "older", VERSION_KEY: "7"})
    report = verify(built)
    assert report.problems == []
    assert report.stale == [f"{path} is stale: run `latentlake stats`"]


def test_weights_of_which_a_chunk_is_missing_are_found(built: Built) -> None:
    path = built.layout.site("p", "site")
    (chunk,) = [file for file in (path / "W_dec" / "c").rglob("*") if file.is_file()]
    chunk.unlink()
    (problem,) = verify(built).problems
    assert problem.startswith(f"{path} is damaged (1 chunks of W_dec are missing)")


def test_a_csr_of_which_a_chunk_is_missing_is_an_error_not_zeros(built: Built) -> None:
    path = place(built, "csr.zarr")
    (chunk,) = [file for file in (path / "data" / "c").rglob("*") if file.is_file()]
    chunk.unlink()
    with pytest.raises(InputError, match=r"csr\.zarr is damaged \(1 chunks of data are missing\)"):
        FeatureStore.open(built.layout.root).csr(path.parent.name, path.parents[2].name)


def test_a_receipt_under_another_shards_name_is_refused(built: Built) -> None:
    marker = built.layout.commit("p", "000001")
    marker.write_bytes(built.layout.commit("p", "000000").read_bytes())
    with pytest.raises(InputError, match="is the receipt of shard 000000"):
        verify(built)


def test_shards_that_are_not_extracted_are_reported(built: Built) -> None:
    built.layout.commit("p", "000001").unlink()
    report = verify(built)
    assert report.stale[0] == "1 shards are not extracted in pass p: `latentlake extract`"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda frame: frame[[1, 0, *range(2, frame.height)]], "is not sorted by (feature, row)"),
        (lambda frame: frame[[0, *range(frame.height - 1)]], "is not sorted by (feature, row)"),
        (
            lambda frame: frame.with_columns(
                feature=pl.when(pl.int_range(pl.len()) == pl.len() - 1).then(D_SAE).otherwise("feature")
            ).cast({"feature": pl.UInt32}),
            "holds features that the SAE does not have",
        ),
    ],
)
def test_postings_without_a_csr_must_ascend_below_d_sae(tmp_path: Path, change, said: str) -> None:
    built = build(tmp_path, shards=2, layouts=["feature_major"])
    path = place(built, "postings.parquet")
    change(pl.read_parquet(path)).write_parquet(path)
    recommit(built, path)
    problem = verify(built).problems[0]
    assert problem.startswith("shard 000001 of site site (a): postings.parquet")
    assert said in problem


def test_a_receipt_that_lacks_an_object_or_leads_out_of_its_attempt_is_a_problem(built: Built) -> None:
    marker = built.layout.commit("p", "000001")
    whole = json.loads(marker.read_bytes())
    objects = [item for item in whole["objects"] if item["path"] != "site/partials.parquet"]
    marker.write_text(json.dumps(whole | {"objects": objects}))
    (problem,) = verify(built).problems
    assert problem.startswith(f"{marker} is incomplete: shard '000001' of site 'site' has no partials")
    marker.write_text(json.dumps(whole | {"objects": [*objects, whole["objects"][0] | {"path": "../x"}]}))
    assert any(p.startswith(f"{marker} names a file outside its attempt") for p in verify(built).problems)
    marker.write_text(json.dumps(whole | {"sites": {"site": whole["sites"]["site"]}}))
    assert verify(built).problems == [f"{marker} does not mention site other"]


def test_a_vocabulary_that_lost_a_token_or_is_damaged_is_found(built: Built) -> None:
    path = built.layout.vocabulary
    words = pl.read_parquet(path)
    words.filter(pl.col("token_id") != 7).write_parquet(path)
    assert verify(built).problems == [f"{path} does not hold a text for each token id from 0 on"]
    path.write_bytes(path.read_bytes()[:-20])
    (problem,) = verify(built).problems
    assert problem.startswith(f"{path} is damaged")
