"""Whether a store is what it says: checksums, both layouts, every statistic recomputed from the activations.

Each shard is a task. Partials that agree with a recomputation are as good as those computed anew, so the
tables are then made from them as `stats` makes them, and compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import polars as pl

from pipeline.executors.tasks import Tasks
from pipeline.store import tables
from pipeline.store.compacted import Compacted, in_use, read_compactions, remedy
from pipeline.store.compaction import is_as_merged
from pipeline.store.control_tables import CONTROL_TABLES, control_tables
from pipeline.store.objects import readable
from pipeline.store.parquet import as_frame, open_parquet
from pipeline.store.shard_check import Committed, Pass, VerifyReport
from pipeline.store.shard_files import ShardFiles
from pipeline.store.site_tables import site_tables
from schemas.errors import InputError
from schemas.layout import Layout, StorePath
from schemas.records import CompactedFile, ShardRecord
from schemas.tables import OF_STATS, VOCABULARY

if TYPE_CHECKING:
    from pipeline.store.reader import FeatureStore

__all__ = ["VerifyReport", "verify"]

OLD_TOLERANCE = 1e-6
"""Relative, for tables from before version 3: mean_all of a rare feature had lost digits there."""


def verify(store: FeatureStore, tasks: Tasks) -> VerifyReport:
    """Check everything that is committed, and the tables of `stats` that are fresh."""
    report = VerifyReport()
    tokens = set()
    for record, found in zip(
        store.shards, tasks.map(partial(_check_tokens, store.layout), store.shards), strict=True
    ):
        report.add(found)
        if not found.problems:
            tokens.add(record.name)
    _verify_vocabulary(store, report)
    for pass_name, plan in store.plans.items():
        receipts = store.pass_receipts(pass_name)
        if pending := len(store.shards) - len(receipts):
            report.stale.append(
                f"{pending} shards are not extracted in pass {pass_name}: `latentlake extract`"
            )
        of = Pass(store.layout, store.lake, plan)
        unsound = {site.name: len(receipts) for site in plan.sites}
        for found, sites in tasks.map(of.check, _committed(store, pass_name, tokens)):
            report.add(found)
            for site in sites:
                unsound[site] -= 1
        compactions, wrong = read_compactions(store.layout, pass_name, receipts)
        report.problems += wrong
        for name, shards in unsound.items():
            if receipts:
                _verify_weights(store, name, report)
            if not shards:
                compacted = in_use(found for found in compactions if found.record.site == name)
                _verify_compaction(store, name, compacted, tasks, report)
                _verify_tables(store, name, tasks, report)
    return report


def _check_tokens(layout: Layout, record: ShardRecord) -> VerifyReport:
    report = VerifyReport()
    report.compare_object(layout.tokens(record.name), record.bytes, record.sha256)
    return report


def _verify_vocabulary(store: FeatureStore, report: VerifyReport) -> None:
    """The text of every token: its pages' checksums (version 4 on), and that no id is left out."""
    path = store.layout.vocabulary
    report.objects += 1
    try:
        with readable(path), open_parquet(path) as file:
            found = as_frame(file.read(), VOCABULARY)
    except InputError as error:
        report.problems.append(str(error))
        return
    ids = pl.Series("token_id", range(found.height), VOCABULARY["token_id"])
    if not found["token_id"].equals(ids) or found["text"].null_count():
        report.problems.append(f"{path} does not hold a text for each token id from 0 on")


def _committed(store: FeatureStore, pass_name: str, tokens: set[str]) -> Iterator[Committed]:
    """What each shard's task needs to know."""
    known = {record.name for record in store.shards}
    for shard, receipt in store.pass_receipts(pass_name).items():
        sites = store.plans[pass_name].sites if shard in known else ()
        files, problem = dict[str, ShardFiles](), None
        try:
            files = {site.name: store.files(site.name, shard) for site in sites}
        except InputError as error:
            problem = f"{store.layout.commit(pass_name, shard)} is incomplete: {error}"
        link = store.link_of(shard) if shard in known else None
        yield Committed(receipt, link, files, shard in tokens, problem)


def _verify_weights(store: FeatureStore, site: str, report: VerifyReport) -> None:
    """Compare the weights that a site keeps with their own checksums."""
    report.objects += 1
    try:
        store.site_weights(site)
    except InputError as error:
        report.problems.append(str(error))


def _verify_compaction(
    store: FeatureStore, site: str, compacted: Compacted | None, tasks: Tasks, report: VerifyReport
) -> None:
    """Compare the files of the compaction in use with their checksums, and with its shards' postings."""
    if compacted is None:
        return
    shards = [store.files(site, shard) for shard in compacted.record.shards]
    check = partial(_check_compacted, shards, compacted.marker, store.site(site).feature_block)
    items = zip(compacted.paths, compacted.record.files, strict=True)
    for found in tasks.map(check, items):
        report.add(found)
    if sum(file.nnz for file in compacted.record.files) != sum(
        store.receipts(site)[shard].sites[site].nnz for shard in compacted.record.shards
    ):
        report.problems.append(f"{compacted.marker} does not hold all activations of its shards")


def _check_compacted(
    shards: Sequence[ShardFiles], marker: StorePath, block: int, file: tuple[StorePath, CompactedFile]
) -> VerifyReport:
    """Whether one file of a compaction has its checksum, and what the postings of the shards hold."""
    report, (path, record) = VerifyReport(), file
    features = range(record.first_feature, record.first_feature + block)
    try:
        if report.compare_object(path, record.bytes, record.sha256) and not is_as_merged(
            shards, path, features
        ):
            report.problems.append(f"{path} does not hold the activations of its shards")
    except InputError as error:
        report.problems.append(str(error))
    report.problems = [f"{problem}; {remedy(marker)}" for problem in report.problems]
    return report


def _verify_tables(store: FeatureStore, site: str, tasks: Tasks, report: VerifyReport) -> None:
    """Compare the tables of `stats` that are there and fresh with those that partials and postings give."""
    stored: dict[str, pl.DataFrame] = {}
    for name in ("features", "l0", "examples", *CONTROL_TABLES):
        path = store.layout.table(site, name)
        if not store.has_table(site, name):
            continue
        try:
            if store.is_stale(site, name):
                report.stale.append(f"{path} is stale: run `latentlake stats`")
            else:
                stored[name] = store.scan_table(site, name).collect()
        except (InputError, pl.exceptions.PolarsError, OSError) as error:
            report.problems.append(_not_compared(path, error))
    if stored:
        try:
            fresh = site_tables(store, site, tasks) | control_tables(store, site, tasks)
        except InputError as error:
            report.problems.append(_not_compared(store.layout.table(site, "features"), error))
            return
        for name, table in stored.items():
            before_3 = tables.version_of(store.layout, site, name) < 3
            tolerance = OLD_TOLERANCE if before_3 else 0.0
            if name == "examples":
                table = table.filter(pl.col("kind").is_in(OF_STATS))  # others are of `latentlake examples`
            report.compare_frame(fresh[name], table, store.layout.table(site, name), tolerance)


def _not_compared(path: StorePath, error: Exception) -> str:
    return f"{path} can not be compared: {error}"
