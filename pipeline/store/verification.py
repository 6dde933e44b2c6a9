"""Whether a store is what it says: checksums, both layouts, every statistic recomputed from the activations.

One shard is in memory at a time. A shard whose bytes are damaged is named and not looked into further.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from pipeline import statistics
from pipeline.statistics.examples import example_table
from pipeline.statistics.rows import combine_counts, l0_counts
from pipeline.store.objects import measure
from pipeline.store.tokens import counted_for, read_token_shard
from pipeline.store.transposition import to_postings
from schemas.errors import InputError
from schemas.layout import PARTIALS, ROW_COUNTS, StorePath
from schemas.records import Receipt, ShardRecord
from schemas.tables import ROW_COUNTS as ROW_COUNTS_SCHEMA
from schemas.values import Postings, SparseFeatures, TokenShard

if TYPE_CHECKING:
    from pipeline.store.reader import FeatureStore


@dataclass
class VerifyReport:
    """What was checked, and each problem in a sentence that names the file."""

    problems: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    """What is not wrong but behind: shards not extracted, tables made from other shards (not compared)."""
    objects: int = 0
    """Token shards and data objects whose checksum was compared."""
    bytes: int = 0
    nonzeros: int = 0
    statistics: int = 0
    """Values of partials, row counts and feature tables that were computed anew."""


def verify(store: FeatureStore) -> VerifyReport:
    """Check everything that is committed, and the feature tables that are fresh."""
    report = VerifyReport()
    tokens = {record.name for record in store.shards if _token_shard_is_intact(store, record, report)}
    for pass_name, plan in store.plans.items():
        receipts = store.pass_receipts(pass_name)
        intact = {shard for shard in receipts if _shard_is_intact(store, pass_name, receipts[shard], report)}
        if pending := len(store.shards) - len(receipts):
            report.stale.append(
                f"{pending} shards are not extracted in pass {pass_name}: `latentlake extract`"
            )
        for site in plan.sites:
            if receipts:
                _verify_weights(store, site.name, report)
            _verify_site(store, site.name, intact & tokens, report)
    return report


def _token_shard_is_intact(store: FeatureStore, record: ShardRecord, report: VerifyReport) -> bool:
    return _compare(store.layout.tokens(record.name), record.bytes, record.sha256, report)


def _shard_is_intact(store: FeatureStore, pass_name: str, receipt: Receipt, report: VerifyReport) -> bool:
    """Whether a receipt fits plan and tokens, and its objects have their checksums."""
    before = len(report.problems)
    marker = store.layout.commit(pass_name, receipt.shard)
    records = {record.name: record for record in store.shards}
    if receipt.shard not in records:
        report.problems.append(f"{marker} commits a shard that the corpus chain does not hold")
    elif receipt.tokens_sha256 != records[receipt.shard].sha256:
        report.problems.append(
            f"{marker} was made from other tokens than {store.layout.tokens(receipt.shard)}"
        )
    elif receipt.link not in (None, store.link_of(receipt.shard)):
        report.problems.append(
            f"{marker} says link {receipt.link} of the corpus chain, its shard came with link "
            f"{store.link_of(receipt.shard)}"
        )
    if receipt.plan_hash != store.plans[pass_name].hash:
        report.problems.append(f"{marker} was made under another plan than {store.layout.plan(pass_name)}")
    folder = store.layout.attempt(pass_name, receipt.shard, receipt.attempt)
    for item in receipt.objects:
        _compare(folder / item.path, item.bytes, item.sha256, report)
    return len(report.problems) == before


def _compare(path: StorePath, size: int, sha256: str, report: VerifyReport) -> bool:
    """Compare a file, or a folder hashed as one, with what its record says."""
    report.objects += 1
    if not path.exists():
        report.problems.append(f"{path} is missing")
        return False
    found_size, found_sha256 = measure(path)
    report.bytes += found_size
    if found_size != size:
        report.problems.append(f"{path} has {found_size:,} bytes, its record says {size:,}")
    elif found_sha256 != sha256:
        report.problems.append(f"{path} is damaged: its sha256 is {found_sha256}, its record says {sha256}")
    else:
        return True
    return False


def _verify_weights(store: FeatureStore, site: str, report: VerifyReport) -> None:
    """Compare the weights that a site keeps with their own checksums."""
    report.objects += 1
    try:
        store.site_weights(site)
    except InputError as error:
        report.problems.append(str(error))


def _verify_site(store: FeatureStore, site: str, intact: set[str], report: VerifyReport) -> None:
    """Recompute every intact shard, then the feature table from the recomputed partials."""
    state, counts = statistics.empty_state(), pl.DataFrame(schema=ROW_COUNTS_SCHEMA)
    complete = True
    for record in store.committed(site):
        shard = _recompute(store, site, record, report) if record.name in intact else None
        if shard is None:
            complete = False
        else:
            state, counts = statistics.combine(state, shard[0]), combine_counts(counts, shard[1])
    if complete:
        _verify_tables(store, site, state, counts, report)


def _recompute(
    store: FeatureStore, site: str, record: ShardRecord, report: VerifyReport
) -> tuple[pl.DataFrame, pl.DataFrame] | None:
    """Partials and row counts of a shard from its activations; None where these can not be right."""
    tokens = read_token_shard(store.layout, store.lake, record, verify=False)
    tokens = tokens.at(store.site(site).positions, store.lake.context_size)
    postings, matrix = store.postings(site, record.name), store.csr(site, record.name)
    features = SparseFeatures(matrix.indptr.astype(np.int64), matrix.indices, matrix.data)
    wrong = list(_wrong(store, site, record, tokens, postings, features))
    report.problems += wrong
    if wrong:
        return None
    report.nonzeros += postings.nnz
    partials = statistics.partials(postings, tokens)
    counts = l0_counts(features.indptr, tokens.counted)
    _same(partials, store.partials(site, record.name), store.object_path(site, record.name, PARTIALS), report)
    _same(
        counts, store.row_counts(site, record.name), store.object_path(site, record.name, ROW_COUNTS), report
    )
    return partials, counts


def _wrong(
    store: FeatureStore,
    site: str,
    record: ShardRecord,
    tokens: TokenShard,
    postings: Postings,
    features: SparseFeatures,
) -> Iterator[str]:
    """What can not be true of a shard's activations, in words."""
    where = f"shard {record.name} of site {site} ({store.receipts(site)[record.name].attempt})"
    info, receipt = store.site(site), store.receipts(site)[record.name].sites[site]
    said = receipt.nnz
    if len(features.indptr) - 1 != tokens.n_rows:
        yield f"{where}: the CSR has {len(features.indptr) - 1:,} rows, the token shard {tokens.n_rows:,}"
        return
    if (postings.nnz, features.nnz) != (said, said):
        yield (
            f"{where}: the postings hold {postings.nnz:,} activations, the CSR {features.nnz:,}, the receipt "
            f"says {said:,}"
        )
    if (len(postings.features) and postings.features[-1] >= info.d_sae) or not _same_postings(
        postings, to_postings(features, info.d_sae)
    ):
        yield f"{where}: csr.zarr and postings.parquet do not hold the same activations"
    if not tokens.stored[postings.rows].all():
        yield f"{where}: a row that the special-token policy or the site's positions keep out has activations"
    if (counted := counted_for(tokens, info.positions)) != receipt.counted:
        yield f"{where}: counted by the receipt: {receipt.counted}; by the token shard: {counted}"
    if not (np.isfinite(postings.values).all() and postings.values.all()):
        yield f"{where}: an activation is 0 or not finite"


def _same_postings(a: Postings, b: Postings) -> bool:
    return (
        np.array_equal(a.features, b.features)
        and np.array_equal(a.offsets, b.offsets)
        and np.array_equal(a.rows, b.rows)
        and np.array_equal(a.values, b.values)
    )


def _verify_tables(
    store: FeatureStore, site: str, state: pl.DataFrame, counts: pl.DataFrame, report: VerifyReport
) -> None:
    """Compare the tables of `stats` with those made from `state`, `counts` and the postings."""
    info = store.site(site)
    postings = ((store.postings(site, record.name), record.row_start) for record in store.committed(site))
    fresh: dict[str, Callable[[], pl.DataFrame]] = {
        "features": lambda: statistics.feature_table(state, store.totals(site), info.d_sae, counts),
        "l0": lambda: counts,
        "examples": lambda: example_table(postings, state),
    }
    for name, make in fresh.items():
        path = store.layout.table(site, name)
        if not store.has_table(site, name):
            continue
        try:
            if store.is_stale(site, name):
                report.stale.append(f"{path} is stale: run `latentlake stats`")
            else:
                _same(make(), store.scan_table(site, name).collect(), path, report)
        except (InputError, pl.exceptions.PolarsError, OSError) as error:
            report.problems.append(f"{path} can not be compared: {error}")


def _same(fresh: pl.DataFrame, stored: pl.DataFrame, path: StorePath, report: VerifyReport) -> None:
    """Compare a frame with what `path` holds, to the bit."""
    report.statistics += fresh.height * fresh.width
    if fresh.schema != stored.schema or fresh.height != stored.height:
        report.problems.append(f"{path} has other columns or rows than a recomputation gives")
        return
    differ = [name for name in fresh.columns if not fresh[name].equals(stored[name], null_equal=True)]
    if differ:
        report.problems.append(f"{path} differs from a recomputation in {', '.join(differ)}")
