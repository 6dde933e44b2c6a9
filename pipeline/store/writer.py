"""Write what one site of one shard gives: its layouts, partials, row counts, a control's statistics.

Equal input, equal bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import polars as pl

from pipeline.store.formats.csr import write_csr
from pipeline.store.formats.dense import DenseWriter
from pipeline.store.formats.parquet import write_frame, write_postings
from pipeline.store.objects.local import storage_errors, writing_threads
from pipeline.store.objects.verbs import measure
from schemas.layout import CONTROL, CONTROL_L0, CSR, DENSE, PARTIALS, POSTINGS, ROW_COUNTS
from schemas.names import ActivationDtype, StoreLayout
from schemas.records import FORMAT_VERSION, DataObject, PlannedSite
from schemas.values import Postings, SparseFeatures


def write_site(
    attempt: Path,
    site: PlannedSite,
    features: SparseFeatures,
    postings: Postings,
    *,
    partials: Callable[[], pl.DataFrame],
    row_counts: pl.DataFrame,
    row_start: int,
    layouts: Sequence[StoreLayout],
    activation_dtype: ActivationDtype,
    control: tuple[pl.DataFrame, pl.DataFrame] | None = None,
    dense: DenseWriter | None = None,
    format_version: int = FORMAT_VERSION,
) -> list[DataObject]:
    """Write one site below the folder `attempt` (see `objects.staged_folder`); its objects, sorted by path.

    `features` and `postings` hold the same activations, already rounded to `activation_dtype`, with rows
    counted from the shard's first; postings.parquet gets `row_start` added. `partials` is called in a thread,
    while others write the layouts. `control` holds the frames of a site's control, `dense` has been given all
    x of the site; `format_version` is the plan's. A full or forbidden disk is an InputError.
    """
    objects: dict[str, Callable[[Path], None]] = {
        PARTIALS: lambda path: write_frame(path, partials(), feature_block=site.feature_block),
        ROW_COUNTS: lambda path: write_frame(path, row_counts),
    }
    if control is not None:
        state, l0 = control
        objects[CONTROL] = lambda path: write_frame(path, state, feature_block=site.feature_block)
        objects[CONTROL_L0] = lambda path: write_frame(path, l0)
    if "token_major" in layouts:
        objects[CSR] = lambda path: write_csr(path, features, site.d_sae, format_version)
    if "feature_major" in layouts:
        options = {"row_start": row_start, "feature_block": site.feature_block}
        objects[POSTINGS] = lambda path: write_postings(
            path, postings, activation_dtype=activation_dtype, format_version=format_version, **options
        )
    if dense is not None:
        objects[DENSE] = dense.finish
    return _write_all(attempt / site.name, objects)


def write_dense_site(attempt: Path, site: PlannedSite, dense: DenseWriter) -> list[DataObject]:
    """The same of a site without an SAE, of which there is x alone."""
    return _write_all(attempt / site.name, {DENSE: dense.finish})


def _write_all(folder: Path, objects: Mapping[str, Callable[[Path], None]]) -> list[DataObject]:
    """Write objects by name, each in a thread."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with writing_threads(len(objects)) as threads:
                written = list(
                    threads.map(lambda name: _write(objects[name], folder / name), sorted(objects))
                )
        except BaseException:  # nobody will commit the attempt, and a full disk wants its space back
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return written


def _write(write: Callable[[Path], None], path: Path) -> DataObject:
    """Write one object."""
    write(path)
    size, sha256 = measure(path)
    return DataObject(path=path.relative_to(path.parents[1]).as_posix(), bytes=size, sha256=sha256)
