"""Whether one shard is what its receipt, its token shard and its own statistics say.

Row group by row group the postings are compared with the transposed CSR and go into the statistics, so no
second copy of the shard is made. A shard whose bytes are damaged is named and not checked further.
Shapes: N rows, Z nonzeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from pipeline import statistics
from pipeline.statistics import control
from pipeline.statistics.l0 import l0_counts
from pipeline.store.formats.dense import dense_problems, open_dense
from pipeline.store.formats.fingerprint import fingerprints
from pipeline.store.formats.parquet import read_frame
from pipeline.store.formats.postings import PostingsFile
from pipeline.store.formats.transposition import cut_columns, to_postings
from pipeline.store.objects.verbs import measure, readable, system_readable
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.store.records.dropped import live_part, live_sites
from pipeline.store.records.tokens import counted_for, read_token_shard
from schemas.errors import InputError
from schemas.layout import Layout, StorePath, below
from schemas.records import Lake, Plan, PlannedSite, Receipt
from schemas.values import I64, U32, U64, Bool, Postings, SparseFeatures, TokenShard

EVERY_FEATURE = range(1 << 32)

Prints = tuple[U32, U64]
"""Features and their fingerprints in one shard."""
NO_PRINTS: Prints = (np.empty(0, np.uint32), np.empty(0, np.uint64))


@dataclass
class VerifyReport:
    """What was checked, and each problem in a sentence that names the file."""

    problems: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    """What is out of date, not wrong: shards not extracted, tables made from other shards (not compared)."""
    objects: int = 0
    """Token shards and data objects whose checksum was compared."""
    bytes: int = 0
    nonzeros: int = 0
    statistics: int = 0
    """Values of partials, row counts and tables that were computed anew."""

    def add(self, other: VerifyReport) -> None:
        """Add another report's findings."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """An InputError of the block ends it, and is a problem."""
        try:
            yield
        except InputError as error:
            self.problems.append(str(error))

    def compare_object(self, path: StorePath, size: int, sha256: str) -> bool:
        """Compare a file, or a folder hashed as one, with what its record says."""
        self.objects += 1
        before = len(self.problems)
        with self.reporting():  # the system's refusals too, which say nothing about what the object holds
            with system_readable(path):
                is_there = path.exists()
            if not is_there:
                raise InputError(f"{path} is missing")
            actual_size, actual_sha256 = measure(path)
            self.bytes += actual_size
            if actual_size != size:
                raise InputError(f"{path} has {actual_size:,} bytes, its record says {size:,}")
            if actual_sha256 != sha256:
                raise InputError(
                    f"{path} is damaged: its sha256 is {actual_sha256}, its record says {sha256}"
                )
        return len(self.problems) == before

    def compare_frame(
        self, fresh: pl.DataFrame, stored: pl.DataFrame, path: StorePath, tolerance: float = 0.0
    ) -> None:
        """Compare a frame with what `path` holds: to the bit, or floats to a relative tolerance."""
        self.statistics += fresh.height * fresh.width
        if fresh.schema != stored.schema or fresh.height != stored.height:
            self.problems.append(f"{path} has other columns or rows than a recomputation")
            return
        differ = []
        for a in fresh:
            b = stored[a.name]
            if tolerance and a.dtype.is_float():  # null is NaN in NumPy
                agree = np.allclose(a.to_numpy(), b.to_numpy(), rtol=tolerance, atol=0, equal_nan=True)
            else:
                agree = a.equals(b, null_equal=True)
            if not agree:
                differ.append(a.name)
        if differ:
            self.problems.append(f"{path} differs from a recomputation in {', '.join(differ)}")


@dataclass(frozen=True)
class Committed:
    """A receipt, and by site where its shard lies: nowhere where the corpus chain does not hold the shard."""

    receipt: Receipt
    link: int | None
    """The corpus link that the shard came with."""
    files: dict[str, ShardFiles]
    tokens_intact: bool
    problem: str | None = None
    """Why its files are not known."""


@dataclass(frozen=True)
class Pass:
    """What all shards of a pass share."""

    layout: Layout
    lake: Lake
    plan: Plan
    compacted: frozenset[str] = frozenset()
    """Sites of which a compaction is compared with the shards, by its fingerprints."""
    dropped: frozenset[str] = frozenset()
    """Sites whose objects need not be there."""

    def check(self, shard: Committed) -> tuple[VerifyReport, dict[str, Prints]]:
        """What was found in one shard, and the sites in which nothing is wrong."""
        report = VerifyReport()
        self._check_receipt(shard, report)
        if report.problems or not shard.tokens_intact:
            return report, {}
        sound = dict[str, Prints]()
        for site in live_sites(self.plan, self.dropped):
            before = len(report.problems)
            with report.reporting():
                prints = _SiteCheck(self, site, shard, report).run()
            if len(report.problems) == before:
                sound[site.name] = prints
        return report, sound

    def _check_receipt(self, shard: Committed, report: VerifyReport) -> None:
        """Whether a receipt fits plan and tokens, and its objects have their checksums."""
        receipt, name = shard.receipt, self.plan.pass_name
        marker = self.layout.commit(name, receipt.shard)
        if shard.problem is not None:
            report.problems.append(shard.problem)
        elif not shard.files:
            report.problems.append(f"{marker} commits a shard that is not in the corpus chain")
        elif receipt.tokens_sha256 != next(iter(shard.files.values())).record.sha256:
            report.problems.append(
                f"{marker} was made from different tokens than {self.layout.tokens(receipt.shard)}"
            )
        elif receipt.link not in (None, shard.link):
            report.problems.append(
                f"{marker} says link {receipt.link} of the corpus chain, but its shard came with link "
                f"{shard.link}"
            )
        if receipt.plan_hash != self.plan.hash:
            report.problems.append(f"{marker} was made under a different plan than {self.layout.plan(name)}")
        folder = self.layout.attempt(name, receipt.shard, receipt.attempt)
        for item in live_part(receipt, self.dropped).objects:
            try:
                report.compare_object(below(folder, item.path, "object"), item.bytes, item.sha256)
            except InputError as error:
                report.problems.append(f"{marker} names a file outside its attempt: {error}")
        for site in live_sites(self.plan, self.dropped):
            if site.name not in receipt.sites:
                report.problems.append(f"{marker} does not mention site {site.name}")


class _SiteCheck:
    """One site of one shard whose bytes are those that were written."""

    def __init__(self, of: Pass, site: PlannedSite, shard: Committed, report: VerifyReport) -> None:
        self._of, self._site, self._report = of, site, report
        self._files, self._receipt = shard.files[site.name], shard.receipt.sites[site.name]
        self._learnt: SparseFeatures | None = None
        """Activations in the control's contexts, a fifth of them, where the CSR was read."""
        self._where = f"shard {shard.receipt.shard} of site {site.name} ({shard.receipt.attempt})"

    def run(self) -> Prints:
        """Compare the layouts with each other, and the statistics with those computed anew."""
        tokens = read_token_shard(self._of.layout, self._of.lake, self._files.record, verify=False)
        tokens = tokens.restrict(self._site.selection, self._of.lake.context_size)
        before = len(self._report.problems)
        if self._files.dense is not None:
            # x was made with the model, so none is computed anew: what must hold of any
            with readable(self._files.dense):
                array, dtype = open_dense(self._files.dense), self._of.plan.dense_dtype
                for wrong in dense_problems(array, tokens.stored, dtype):
                    self._wrong(wrong)
        if not self._site.has_sae:
            self._check_counts(tokens, None)
            return NO_PRINTS
        columns, indptr = self._by_columns(tokens)
        if len(self._report.problems) > before:
            return NO_PRINTS
        self._check_counts(tokens, columns)
        partials, l0, prints = self._walk(tokens, columns)
        if len(self._report.problems) > before:
            return NO_PRINTS
        counts = l0_counts(np.append(0, np.cumsum(l0)) if indptr is None else indptr, tokens.counted)
        self._report.nonzeros += self._receipt.nnz
        self._report.compare_frame(partials, self._files.read_partials(EVERY_FEATURE), self._files.partials)
        self._report.compare_frame(counts, self._files.read_row_counts(), self._files.row_counts)
        if self._site.control:
            del columns
            self._check_control(tokens)
        return prints

    def _check_control(self, tokens: TokenShard) -> None:
        """The learnt side computed anew; of the control, which needs the model, what must hold of any."""
        files, chosen = self._files, control.in_control(tokens)
        assert files.control is not None
        assert files.control_l0 is not None
        # without a CSR the postings are read once more, for they went by in runs and must be turned
        kept = _of_rows(files.read_csr(), chosen) if self._learnt is None else self._learnt
        learnt = control.learnt_state(to_postings(kept, self._site.d_sae))
        l0 = control.learnt_l0(kept, int((tokens.counted & chosen).sum()))
        with readable(files.control_l0):
            stored, stored_l0 = files.read_control(EVERY_FEATURE), read_frame(files.control_l0)
        is_learnt = pl.col("of") == control.LEARNT
        self._report.compare_frame(learnt.select(stored.columns), stored.filter(is_learnt), files.control)
        self._report.compare_frame(l0, stored_l0.filter(is_learnt), files.control_l0)
        if wrong := control.impossible(stored, stored_l0):
            self._wrong(f"the control {wrong}")

    def _wrong(self, what: str) -> None:
        self._report.problems.append(f"{self._where}: {what}")

    def _by_columns(self, tokens: TokenShard) -> tuple[Any, I64 | None]:
        """The CSR turned into a CSC [N, d_sae], and its indptr; nothing where there is no CSR."""
        if self._files.csr is None:
            return None, None
        matrix = self._files.read_csr()
        if matrix.shape[0] != tokens.n_rows:
            self._wrong(f"the CSR has {matrix.shape[0]:,} rows, the token shard {tokens.n_rows:,}")
        elif matrix.nnz and not 0 <= matrix.indices.min() <= matrix.indices.max() < self._site.d_sae:
            self._wrong("the CSR holds features that the SAE does not have")
        else:
            if self._site.control:
                self._learnt = _of_rows(matrix, control.in_control(tokens))
            return matrix.tocsc(), matrix.indptr.astype(np.int64)
        return None, None

    def _check_counts(self, tokens: TokenShard, columns: Any) -> None:
        """The receipt's word on activations and counted rows."""
        unknown = None if self._site.has_sae else 0
        in_csr = unknown if columns is None else int(columns.nnz)
        in_postings = in_csr if self._files.postings is None else PostingsFile(self._files.postings).nnz
        recorded = self._receipt.nnz
        if {in_postings, in_csr} - {None, recorded}:
            self._wrong(
                f"the postings hold {in_postings:,} activations, the CSR "
                f"{in_postings if in_csr is None else in_csr:,}, the receipt says {recorded:,}"
            )
        if (counted := counted_for(tokens, self._site.selection)) != self._receipt.counted:
            self._wrong(f"counted by the receipt: {self._receipt.counted}; by the token shard: {counted}")

    def _walk(self, tokens: TokenShard, columns: Any) -> tuple[pl.DataFrame, I64, Prints]:
        """Partials; the active features of each row where no CSR holds them, int64 [N]; fingerprints."""
        parts, l0 = [statistics.empty_state()], np.zeros(tokens.n_rows, np.int64)
        prints = [NO_PRINTS]
        after = -1
        for block in self._blocks(columns):
            wrong = _postings_problem(block, tokens, columns)
            if columns is None:  # else the comparison with the CSR has seen it
                wrong = wrong or _out_of_order(block, after, self._site.d_sae)
            if wrong:
                self._wrong(wrong)
                break
            # the next block must begin beyond this one's last feature
            after = int(block.features[-1]) if len(block.features) else after
            parts.append(statistics.partials(block, tokens))
            if self._site.name in self._of.compacted:
                rows = block.rows.astype(np.uint64) + np.uint64(self._files.record.row_start)
                prints.append((block.features, fingerprints(block.offsets, rows, block.values)))
            if columns is None:
                l0 += np.bincount(block.rows, minlength=tokens.n_rows)
        features, sums = (np.concatenate(column) for column in zip(*prints, strict=True))
        return pl.concat(parts), l0, (features, sums)

    def _blocks(self, columns: Any) -> Iterator[Postings]:
        """The activations in pieces of whole features: row groups of the postings, else cut from the CSC."""
        if self._files.postings is not None:
            file = PostingsFile(self._files.postings)
            for groups in file.runs_of(EVERY_FEATURE):
                yield file.read(self._files.record.row_start, groups)
        else:
            for first in range(0, self._site.d_sae, self._site.feature_block):
                yield cut_columns(columns, first, min(first + self._site.feature_block, self._site.d_sae))


def _of_rows(matrix: Any, chosen: Bool) -> SparseFeatures:
    """A CSR [N, d_sae] with the activations of the rows that are `chosen` [N]."""
    every = SparseFeatures(matrix.indptr.astype(np.int64), matrix.indices, matrix.data)
    return every.select(np.repeat(chosen, np.diff(every.indptr)))


def _postings_problem(block: Postings, tokens: TokenShard, columns: Any) -> str | None:
    """What cannot be true of some activations, in words."""
    if columns is not None and not _same(block, columns):
        return "csr.zarr and postings.parquet do not hold the same activations"
    inside = bool((block.rows >= 0).all() and (block.rows < tokens.n_rows).all())
    if not (inside and tokens.stored[block.rows].all()):
        return "a row that the special-token policy or the site's positions exclude has activations"
    if not (np.isfinite(block.values).all() and block.values.all()):
        return "an activation is 0 or not finite"
    return None


def _out_of_order(block: Postings, after: int, d_sae: int) -> str | None:
    """Whether (feature, row) does not strictly ascend, from a feature larger than `after` on, below d_sae."""
    features = block.features.astype(np.int64)
    if len(features) and features.max() >= d_sae:
        return "postings.parquet holds features that the SAE does not have"
    # rows ascend within a feature: a step from one feature's last row to the next one's first may fall
    same_feature = np.ones(max(len(block.rows) - 1, 0), bool)
    same_feature[block.offsets[1:-1] - 1] = False
    ascends = (np.diff(features, prepend=after) > 0).all() and (np.diff(block.rows)[same_feature] > 0).all()
    return None if ascends else "postings.parquet is not sorted by (feature, row)"


def _same(block: Postings, columns: Any) -> bool:
    """Whether the CSC holds the same activations for the features from the block's first to its last."""
    if not len(block.features) or block.features[-1] >= columns.shape[1]:
        return not len(block.features)
    other = cut_columns(columns, int(block.features[0]), int(block.features[-1]) + 1)
    names = ("features", "offsets", "rows", "values")
    return all(np.array_equal(getattr(block, name), getattr(other, name)) for name in names)
