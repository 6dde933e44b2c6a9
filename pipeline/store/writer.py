"""Write what one site of one shard gives: both layouts, partials, row counts. Equal input, equal bytes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from pipeline.store.csr import write_csr
from pipeline.store.objects import fsync_folder, fsync_tree, measure, storage_errors
from pipeline.store.parquet import write_frame, write_postings
from schemas.layout import CSR, PARTIALS, POSTINGS, ROW_COUNTS
from schemas.records import DataObject, PlannedSite
from schemas.run_file import ActivationDtype, StoreLayout
from schemas.values import Postings, SparseFeatures


def write_site(
    attempt: Path,
    site: PlannedSite,
    features: SparseFeatures,
    postings: Postings,
    *,
    partials: pl.DataFrame,
    row_counts: pl.DataFrame,
    row_start: int,
    layouts: Sequence[StoreLayout],
    activation_dtype: ActivationDtype,
) -> list[DataObject]:
    """Write one site below the attempt's folder and return its objects, sorted by path.

    `features` and `postings` hold the same activations, already rounded to `activation_dtype`, with rows
    counted from the shard's first; postings.parquet gets `row_start` added. All is on the disk when this
    returns. A full or forbidden disk is an InputError.
    """
    folder = attempt / site.name
    with storage_errors(folder):
        folder.mkdir(parents=True)
        try:
            if "token_major" in layouts:
                write_csr(folder / CSR, features, site.d_sae)
            if "feature_major" in layouts:
                write_postings(
                    folder / POSTINGS,
                    postings,
                    row_start=row_start,
                    activation_dtype=activation_dtype,
                    feature_block=site.feature_block,
                )
            write_frame(folder / PARTIALS, partials)
            write_frame(folder / ROW_COUNTS, row_counts)
            _fsync(folder)
        except BaseException:  # nobody will commit the attempt, and a full disk wants its space back
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return [_object(path, attempt) for path in sorted(folder.iterdir())]


def _fsync(folder: Path) -> None:
    """Bring the site's folder to the disk, and the names of the attempt, the shard and data/ above it."""
    fsync_tree(folder)
    for parent in list(folder.parents)[:3]:
        fsync_folder(parent)


def _object(path: Path, attempt: Path) -> DataObject:
    size, sha256 = measure(path)
    return DataObject(path=path.relative_to(attempt).as_posix(), bytes=size, sha256=sha256)
