"""What a site holds of one shard, as paths: all that a task needs to read it, without opening the store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from pipeline.statistics import partials_schema
from pipeline.store.formats.parquet import as_frame, open_parquet
from pipeline.store.formats.postings import PostingsFile
from pipeline.store.objects.verbs import readable
from schemas.layout import StorePath
from schemas.names import ActivationDtype
from schemas.records import ShardRecord
from schemas.tables.tables import CONTROL_STATE, ROW_COUNTS, Schema
from schemas.values import I64, Postings, SparseFeatures

if TYPE_CHECKING:
    from scipy import sparse


@dataclass(frozen=True)
class ShardFiles:
    """Paths of one site's objects in one committed shard; a layout that the pass has not is None."""

    record: ShardRecord
    d_sae: int
    activation_dtype: ActivationDtype
    partials: StorePath
    row_counts: StorePath
    """These two are not there where the site has no SAE."""
    postings: StorePath | None
    csr: StorePath | None
    control: StorePath | None = None
    control_l0: StorePath | None = None
    """None where the site has no control."""
    dense: StorePath | None = None

    def read_csr(self) -> sparse.csr_matrix:
        """Token-major activations, float32 [rows, d_sae]; made from the postings where there is no CSR."""
        from scipy import sparse

        from pipeline.store.formats.csr import read_csr
        from pipeline.store.formats.transposition import to_features

        if self.csr is not None:
            with readable(self.csr):
                matrix = read_csr(self.csr)
                if matrix.shape != (self.record.rows, self.d_sae):
                    raise ValueError(
                        f"its shape is {list(matrix.shape)}, for {self.record.rows:,} rows of {self.d_sae:,}"
                    )
                return matrix
        features = to_features(self.read_postings(), self.record.rows, self.d_sae)
        parts = (features.data, features.indices, features.indptr)
        return sparse.csr_matrix(parts, shape=(self.record.rows, self.d_sae))

    def read_rows(self, rows: range) -> sparse.csr_matrix:
        """Some rows of it, counted from the shard's first: float32 [len(rows), d_sae]."""
        if self.csr is None:
            return self.read_csr()[rows.start : rows.stop]
        from pipeline.store.formats.csr import read_rows

        with readable(self.csr):
            return read_rows(self.csr, rows)

    def read_postings(self) -> Postings:
        """Feature-major activations, rows counted from the shard's first; without postings, from the CSR."""
        if self.postings is not None:
            return PostingsFile(self.postings).read(self.record.row_start)
        from pipeline.store.formats.transposition import to_postings

        matrix = self.read_csr()
        indptr = matrix.indptr.astype(np.int64)
        return to_postings(SparseFeatures(indptr, matrix.indices, matrix.data), matrix.shape[1])

    def postings_of(self, features: range) -> Iterator[Postings]:
        """Activations of some features, rows counted from the shard's first: whole features, in runs
        of a million activations or so, none of them empty. Where there are no postings the CSR is read whole.
        """
        if self.postings is None:
            runs: Iterable[Postings] = [self.read_postings()]
        else:
            file = PostingsFile(self.postings)
            runs = (file.read(self.record.row_start, groups) for groups in file.runs_of(features))
        for run in runs:
            if (some := run.between(features.start, features.stop)).nnz:
                yield some

    def read_pattern(self) -> sparse.csr_matrix:
        """Where activations are: int8 ones [rows, d_sae], to look up; products of them overflow."""
        from scipy import sparse

        from pipeline.store.formats.csr import read_pattern

        if self.csr is None:
            matrix = self.read_csr()
            indices, indptr, shape = matrix.indices, matrix.indptr, matrix.shape
        else:
            with readable(self.csr):
                indices, indptr, shape = read_pattern(self.csr)
        return sparse.csr_matrix((np.ones(len(indices), np.int8), indices, indptr), shape=shape)

    def read_pattern_of(self, features: range, pattern: sparse.csr_matrix) -> sparse.csr_matrix:
        """Where some features are active: int8 ones [features, rows]; `pattern` is that of all."""
        from scipy import sparse

        if self.postings is None:
            return pattern[:, features.start : features.stop].T.tocsr()
        file = PostingsFile(self.postings)
        feature, rows = file.read_groups(file.groups_of(features.start, features.stop), ("feature", "row"))
        # row groups hold whole blocks: of the first and the last some features are not of the range
        place = slice(*np.searchsorted(feature, np.array([features.start, features.stop], np.uint32)))
        counts, rows = np.bincount(feature[place] - features.start, minlength=len(features)), rows[place]
        indptr = np.append(0, np.cumsum(counts))
        parts = (np.ones(len(rows), np.int8), rows.astype(np.int64) - self.record.row_start, indptr)
        return sparse.csr_matrix(parts, shape=(len(features), self.record.rows))

    def read_partials(self, features: range, columns: list[str] | None = None) -> pl.DataFrame:
        """Partials of some features: all columns, or those in `columns`, `feature` among them.

        Reads the row groups that may hold them; a store from before version 3 has one for all features.
        """
        return _read_features(self.partials, features, columns, partials_schema())

    def read_control(self, features: range) -> pl.DataFrame:
        """States of control and learnt features of some features (`schemas.tables.tables.CONTROL_STATE`).

        They have the columns of the file, which may lack the last.
        """
        assert self.control is not None
        return _read_features(self.control, features, None, CONTROL_STATE, may_lack="strongest_activation")

    def read_row_counts(self) -> pl.DataFrame:
        """L0 counts (`schemas.tables.tables.ROW_COUNTS`)."""
        with readable(self.row_counts), open_parquet(self.row_counts) as parquet:
            return as_frame(parquet.read(use_threads=False), ROW_COUNTS)


def _read_features(
    path: StorePath, features: range, columns: list[str] | None, known: Schema, may_lack: str = ""
) -> pl.DataFrame:
    """The lines of some features of a file that is sorted by its first column `feature`."""
    with readable(path), open_parquet(path) as parquet:
        metadata = parquet.metadata
        groups = []
        for group in range(metadata.num_row_groups):
            bounds = metadata.row_group(group).column(0).statistics
            # without statistics any feature may be there
            is_bounded = bounds is not None and bounds.has_min_max
            if not is_bounded or (bounds.min < features.stop and bounds.max >= features.start):
                groups.append(group)
        table = parquet.read_row_groups(groups, columns=columns, use_threads=False)
        expected = [name for name in columns or known if name != may_lack or name in table.column_names]
        frame = as_frame(table, {name: known[name] for name in expected})
    first, last = np.searchsorted(frame["feature"].to_numpy(), [features.start, features.stop])
    return frame.slice(int(first), int(last - first))


def read_n_active(shards: Sequence[ShardFiles], features: range) -> I64:
    """Rows in which each of some features is active, int64 [F], from the partials."""
    n_active = np.zeros(len(features), np.int64)
    for shard in shards:
        active = shard.read_partials(features, ["feature", "n_active"])
        n_active[active["feature"].to_numpy().astype(np.int64) - features.start] += active[
            "n_active"
        ].to_numpy()
    return n_active
