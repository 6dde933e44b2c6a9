"""Whether a store is what it says: checksums, both layouts, every statistic recomputed from the activations.

Each shard is a task; a compaction is compared by fingerprints that its shards' tasks give, and nothing is
merged again. Partials that agree with a recomputation are as good as those computed anew, so the
tables are then made from them as `stats` makes them, and compared. Tables of other jobs have their pages'
checksums alone, and annotations are read. What else is for people (manifest, events, prediction, figures,
report) is not checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import polars as pl

from pipeline.statistics.features.ragged import run_starts
from pipeline.store.derived.control import control_tables
from pipeline.store.derived.features import site_tables
from pipeline.store.formats.fingerprint import fingerprints
from pipeline.store.formats.parquet import as_frame, open_parquet
from pipeline.store.formats.postings import PostingsFile
from pipeline.store.objects.verbs import listed, readable
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.store.reading.site_access import SiteAccess
from pipeline.store.records import tables
from pipeline.store.records.annotations import read_edits
from pipeline.store.records.commits import has_commits
from pipeline.store.records.compacted import Compacted, in_use, read_compactions, remedy
from pipeline.store.records.registry import TABLES, find_table
from pipeline.store.records.tokens import read_token_shard
from pipeline.store.upkeep.drop import leftovers
from pipeline.store.upkeep.shard_check import EVERY_FEATURE, Committed, Pass, VerifyReport
from pipeline.tasks import Tasks
from schemas.errors import InputError
from schemas.layout import Layout, StorePath
from schemas.names import NAME
from schemas.records import CompactedFile, Lake, ShardRecord
from schemas.tables.tables import OF_STATS, VOCABULARY, WITHOUT_TOKEN_BYTES
from schemas.values import U64

__all__ = ["VerifyReport", "verify"]

OLD_TOLERANCE = 1e-6
"""Relative, for tables from before version 3: mean_all of a rare feature had lost digits there."""


def verify(store: SiteAccess, tasks: Tasks) -> VerifyReport:
    """Check everything that is committed, and the tables of `stats` that are fresh."""
    report = VerifyReport()
    tokens = set()
    for record, shard_report in zip(
        store.shards, tasks.map(partial(_check_tokens, store.layout, store.lake), store.shards), strict=True
    ):
        report.add(shard_report)
        if not shard_report.problems:
            tokens.add(record.name)
    _verify_vocabulary(store, report)
    # each shard's numbers begin where those of the shard before end
    expected: tuple[int, ...] = (0, 0, 0)
    for shard in store.shards:
        if (shard.row_start, shard.context_start, shard.document_start) != expected:
            report.problems.append(
                f"the corpus chain in {store.layout.corpus_link(0).parent} has a gap before {shard.name}"
            )
            break
        more = shard.rows, shard.contexts, shard.documents
        expected = tuple(start + n for start, n in zip(expected, more, strict=True))
    for pass_name in store.plans:
        _verify_pass(store, pass_name, tokens, tasks, report)
    for info in store.sites.values():
        edits, wrong = read_edits(store.layout, info)
        report.objects += len(edits) + len(wrong)
        report.problems += wrong
    # what is left of dropped sites, and of passes whose plan was removed by other hands
    left = Counter(site for site, _ in leftovers(store.layout))
    for site, pieces in sorted(left.items()):
        report.stale.append(
            f"{pieces} files or folders of the dropped site {site} remain: run `latentlake gc`"
        )
    for folder in listed(store.layout.passes):
        name = folder.name
        if NAME.fullmatch(name) and name not in store.plans and has_commits(store.layout, name):
            report.problems.append(
                f"{store.layout.plan(name)} is missing, but shards are committed under it: restore it from a "
                f"copy of the store, or remove {folder}"
            )
    return report


def _verify_pass(
    store: SiteAccess, pass_name: str, tokens: set[str], tasks: Tasks, report: VerifyReport
) -> None:
    """Every shard of a pass; then of each site in which nothing is wrong the compaction and the tables."""
    plan, receipts = store.plans[pass_name], store.pass_receipts(pass_name)
    if pending := len(store.shards) - len(receipts):
        report.stale.append(f"{pending} shards are not extracted in pass {pass_name}: `latentlake extract`")
    if plan.lake_digest != store.lake.digest:
        report.problems.append(
            f"{store.layout.lake} is not the lake that {store.layout.plan(pass_name)} was made for"
        )
    compactions, wrong = read_compactions(store.layout, pass_name, receipts)
    report.problems += wrong
    planned = store.pass_sites(pass_name)
    expected = {
        site.name: _Expected(compacted, np.zeros(site.d_sae, np.uint64))
        for site in planned
        if (compacted := in_use(each for each in compactions if each.record.site == site.name)) is not None
    }
    unsound = {site.name: len(receipts) for site in planned}
    of = Pass(store.layout, store.lake, plan, frozenset(expected), store.dropped[pass_name])
    checked = tasks.map(of.check, _committed(store, pass_name, tokens))
    for shard, (shard_report, sites) in zip(receipts, checked, strict=True):
        report.add(shard_report)
        for site, prints in sites.items():
            unsound[site] -= 1
            if site in expected and shard in expected[site].compacted.shards:
                features, sums = prints
                expected[site].prints[features] += sums
    for name, shards in unsound.items():
        if receipts:
            # the weights that the site keeps have checksums of their own
            report.objects += 1
            with report.reporting():
                store.site_weights(name)
        if not shards:
            if name in expected:
                _verify_compaction(store, name, expected[name], tasks, report)
            _verify_tables(store, name, tasks, report)


class _Expected(NamedTuple):
    """The compaction in use of a site, and the fingerprints that its shards give its features, [d_sae]."""

    compacted: Compacted
    prints: U64


def _check_tokens(layout: Layout, lake: Lake, record: ShardRecord) -> VerifyReport:
    """Whether a token shard has its checksum, and the counts of its record, from which denominators come."""
    report, path = VerifyReport(), layout.tokens(record.name)
    if not report.compare_object(path, record.bytes, record.sha256):
        return report
    with report.reporting():
        tokens = read_token_shard(layout, lake, record, verify=False)
        totals = tokens.totals()
        counts = totals.rows, totals.counted_rows, tokens.n_contexts, totals.contexts, totals.documents
        counted = record.counted_contexts, record.counted_documents
        recorded = record.rows, record.counted_rows, record.contexts, *counted
        if counts != recorded:
            report.problems.append(
                f"the corpus chain's record of {record.name} says {recorded} rows, counted rows, contexts, "
                f"counted contexts and counted documents; {path} holds {counts}"
            )
        documents = tokens.document.astype(np.int64) - record.document_start
        if len(documents) and not 0 <= documents.min() <= documents.max() < record.documents:
            report.problems.append(f"{path} holds documents that are not in the corpus chain's record of it")
    return report


def _verify_vocabulary(store: SiteAccess, report: VerifyReport) -> None:
    """The text of every token: its pages' checksums (version 4 on), and that no id is left out."""
    path = store.layout.vocabulary
    report.objects += 1
    with report.reporting():
        with readable(path), open_parquet(path) as file:
            has_bytes = "bytes" in file.schema_arrow.names
            schema = {name: dtype for name, dtype in VOCABULARY.items() if has_bytes or name != "bytes"}
            vocabulary = as_frame(file.read(), schema)
        ids = pl.Series("token_id", range(vocabulary.height), VOCABULARY["token_id"])
        if not vocabulary["token_id"].equals(ids) or any(vocabulary.null_count().row(0)):
            raise InputError(f"{path} does not hold a text for each token id from 0 on")
        if not has_bytes and store.lake.format_version > WITHOUT_TOKEN_BYTES:
            raise InputError(f"{path} does not hold the bytes of each token")


def _committed(store: SiteAccess, pass_name: str, tokens: set[str]) -> Iterator[Committed]:
    """What each shard's task needs to know."""
    known = {record.name for record in store.shards}
    for shard, receipt in store.pass_receipts(pass_name).items():
        sites = store.pass_sites(pass_name) if shard in known else ()
        files, problem = dict[str, ShardFiles](), None
        try:
            files = {site.name: store.all_files(site.name, shard) for site in sites}
        except InputError as error:
            problem = f"{store.layout.commit(pass_name, shard)} is incomplete: {error}"
        link = store.link_of(shard) if shard in known else None
        yield Committed(receipt, link, files, shard in tokens, problem)


def _verify_compaction(
    store: SiteAccess, site: str, expected: _Expected, tasks: Tasks, report: VerifyReport
) -> None:
    """Compare the files of the compaction in use with their checksums, and with what its shards hold."""
    record, block = expected.compacted.record, store.site(site).feature_block
    items = (
        (path, file, expected.prints[file.first_feature : file.first_feature + block])
        for path, file in zip(expected.compacted.paths, record.files, strict=True)
    )
    for part_report in tasks.map(partial(_check_compacted, expected.compacted.marker), items):
        report.add(part_report)
    if sum(file.nnz for file in record.files) != sum(
        store.site_receipts(site)[shard].nnz for shard in record.shards
    ):
        report.problems.append(f"{expected.compacted.marker} does not hold all activations of its shards")


def _check_compacted(marker: StorePath, item: tuple[StorePath, CompactedFile, U64]) -> VerifyReport:
    """Whether one file of a compaction has its checksum, and what its shards hold, sorted."""
    report, (path, record, expected) = VerifyReport(), item
    with report.reporting():
        if report.compare_object(path, record.bytes, record.sha256) and not _holds(
            PostingsFile(path), record.first_feature, expected
        ):
            raise InputError(f"{path} does not hold the activations of its shards")
    report.problems = [f"{problem}; {remedy(marker)}" for problem in report.problems]
    return report


def _holds(file: PostingsFile, first: int, expected: U64) -> bool:
    """Whether a file is sorted by (feature, row) and has these fingerprints of features from `first` on."""
    prints, last = np.zeros(len(expected), np.uint64), (-1, -1)
    for groups in file.runs_of(EVERY_FEATURE):
        features, rows, values = file.read_groups(groups)
        place, row = features.astype(np.int64) - first, rows.astype(np.int64)
        # a run goes on where the one before ended, so that is what its first row is compared with
        ascends = np.diff(place, prepend=last[0]) > 0
        ascends |= (np.diff(place, prepend=last[0]) == 0) & (np.diff(row, prepend=last[1]) > 0)
        if not ascends.all() or place[0] < 0 or place[-1] >= len(expected):
            return False
        starts = run_starts(place)
        prints[place[starts]] += fingerprints(np.append(starts, len(row)), rows, values.astype(np.float32))
        last = int(place[-1]), int(row[-1])
    return np.array_equal(prints, expected)


def _verify_tables(store: SiteAccess, site: str, tasks: Tasks, report: VerifyReport) -> None:
    """Compare the tables of `stats` that are there and fresh with those that partials and postings give.

    Of all tables the pages' checksums are compared, where they have any (version 4 on).
    """
    stored: dict[str, pl.DataFrame] = {}
    recomputed = {table.name for table in TABLES if table.job == "stats"}
    for name in store.tables(site):
        path = store.layout.table(site, name)
        report.objects += 1
        try:
            tables.check_table(store.layout, site, name)
            if name in recomputed and store.is_stale(site, name):
                report.stale.append(f"{path} is stale: run `latentlake stats`")
            elif name in recomputed:
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
            tolerance = OLD_TOLERANCE if tables.version_of(store.layout, site, name) < 3 else 0.0
            if name == "examples":
                kinds = ("top",) if "top_document" in table["kind"] else OF_STATS
                # other kinds are of `latentlake examples`, which also puts samples into their exact tenths
                table = table.filter(pl.col("kind").is_in(kinds))
                fresh[name] = fresh[name].filter(pl.col("kind").is_in(kinds))
            lacks = find_table(name).added - set(table.columns)
            report.compare_frame(fresh[name].drop(lacks), table, store.layout.table(site, name), tolerance)


def _not_compared(path: StorePath, error: Exception) -> str:
    return f"{path} cannot be compared: {error}"
