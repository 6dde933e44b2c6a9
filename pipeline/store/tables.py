"""Derived tables: replaced whole, each with the digest of the receipts that it was made from."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import polars as pl
import pyarrow as pa

from pipeline.store.objects import remove, write_atomic
from pipeline.store.parquet import read_metadata, scan_frame, write_frame, write_frames
from schemas.errors import InputError
from schemas.layout import Layout, StorePath
from schemas.records import FORMAT_VERSION, refuse_newer
from schemas.tables import Schema

RECEIPTS_KEY, VERSION_KEY = "latentlake.receipts", "latentlake.format_version"


class StaleTableWarning(UserWarning):
    """A table was made from other receipts than those of the store."""


def require_writable(layout: Layout, site: str) -> None:
    """InputError, or the storage's error, where tables of the site can not be written; before the work."""
    probe = layout.table(site, "features").parent / ".writable"
    write_atomic(probe, b"")
    remove(probe)


def write_table(layout: Layout, site: str, name: str, frame: pl.DataFrame, receipts_digest: str) -> StorePath:
    """Write or replace tables/<site>/<name>.parquet and return its path."""
    path = layout.table(site, name)
    write_frame(path, frame, {RECEIPTS_KEY: receipts_digest, VERSION_KEY: str(FORMAT_VERSION)})
    return path


def write_table_parts(
    layout: Layout,
    site: str,
    name: str,
    schema: Schema,
    parts: Iterable[pl.DataFrame],
    receipts_digest: str,
    metadata: dict[str, str] | None = None,
) -> StorePath:
    """The same of a table that comes in parts, and is never whole in memory; `metadata` is kept beside it."""
    path = layout.table(site, name)
    known = {RECEIPTS_KEY: receipts_digest, VERSION_KEY: str(FORMAT_VERSION)}
    write_frames(path, schema, parts, (metadata or {}) | known)
    return path


def has_table(layout: Layout, site: str, name: str) -> bool:
    """Whether the table was ever written."""
    return layout.table(site, name).is_file()


def is_stale(layout: Layout, site: str, name: str, receipts_digest: str) -> bool:
    """Whether the table was made from other receipts than `receipts_digest` says."""
    return made_from(layout, site, name) != receipts_digest


def made_from(layout: Layout, site: str, name: str) -> str:
    """The digest of the receipts that the table was made from."""
    return _metadata(_existing(layout, site, name)).get(RECEIPTS_KEY, "")


def version_of(layout: Layout, site: str, name: str) -> int:
    """The format version that the table was written in."""
    return int(_metadata(_existing(layout, site, name)).get(VERSION_KEY, FORMAT_VERSION))


def scan_table(layout: Layout, site: str, name: str, receipts_digest: str | None = None) -> pl.LazyFrame:
    """The table; InputError when it is absent or newer than this code, StaleTableWarning when it is stale.

    `receipts_digest` is what `commits.receipts_digest` says now; without it staleness is not looked at.
    """
    path = _existing(layout, site, name)
    refuse_newer(_metadata(path).get(VERSION_KEY), str(path))
    if receipts_digest is not None and is_stale(layout, site, name, receipts_digest):
        warnings.warn(
            f"{path} is stale: shards were committed after it was made; run `latentlake {job_of(name)}`",
            StaleTableWarning,
            stacklevel=3,
        )
    return scan_frame(path)


def _existing(layout: Layout, site: str, name: str) -> StorePath:
    path = layout.table(site, name)
    if not path.is_file():
        raise InputError(
            f"table {name!r} of site {site!r} does not exist ({path}): run `latentlake {job_of(name)}`"
        )
    return path


JOBS = {
    "profile": ("profile", "labels", "label_trends", "label_values", "l0_thresholds"),
    "rank": ("rankings", "ranking_summary"),
    "coactivation": ("neighbours", "decoder_neighbours"),
    "cluster": ("feature_map",),
    "logits": ("logits", "logits_random", "logits_histogram"),
    "importance": ("importance", "importance_classes"),
    "images": ("feature_images", "class_images", "feature_similarity"),
    "fidelity": ("fidelity", "fidelity_shards", "fidelity_means"),
    "truth": ("truth", "truth_summary", "truth_pairs", "truth_cosines"),
    "attribute": ("attributions", "attribution_prompts", "attribution_selection"),
}
"""The tables of each command, where no rule says it."""


def job_of(table: str) -> str:
    """The command that writes a table."""
    for command, tables in JOBS.items():
        if table in tables:
            return command
    if table.startswith("matches"):
        return "match"
    return "cluster" if "cluster" in table else "stats"


def _metadata(path: StorePath) -> dict[str, str]:
    try:
        return read_metadata(path)
    except InputError:
        raise
    except (ValueError, pa.ArrowException) as error:
        raise InputError(f"{path} is damaged ({error}): delete it and run the job that writes it") from None
