"""Derived tables: replaced whole, each with the digest of the receipts that it was made from."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import polars as pl

from pipeline.store.formats.parquet import (
    SEAL_KEY,
    read_metadata,
    read_schema,
    read_through,
    scan_frame,
    write_frames,
)
from pipeline.store.objects.paths import ObjectPath
from pipeline.store.objects.verbs import readable, remove, write_atomic
from pipeline.store.records.registry import find_table, job_of
from schemas.errors import InputError
from schemas.layout import Layout, StorePath
from schemas.records import FORMAT_VERSION, refuse_newer
from schemas.tables.tables import Schema

_SEALED_SINCE = 6
"""Format version."""
RECEIPTS_KEY, VERSION_KEY = "latentlake.receipts", "latentlake.format_version"


class StaleTableWarning(UserWarning):
    """A table was made from other receipts than those of the store."""


def require_writable(layout: Layout, site: str) -> None:
    """InputError, or the storage's error, where tables of the site cannot be written; before the work."""
    probe = layout.table(site, "features").parent / ".writable"
    write_atomic(probe, b"")
    remove(probe)


def write_table(layout: Layout, site: str, name: str, frame: pl.DataFrame, receipts_digest: str) -> StorePath:
    """Write or replace tables/<site>/<name>.parquet and return its path."""
    return write_table_parts(layout, site, name, dict(frame.schema), [frame], receipts_digest)


def write_table_parts(
    layout: Layout,
    site: str,
    name: str,
    schema: Schema,
    parts: Iterable[pl.DataFrame],
    receipts_digest: str,
    metadata: dict[str, str] | None = None,
) -> StorePath:
    """The same of a table that comes in parts, and is never whole in memory; `metadata` is kept with it."""
    path = layout.table(site, name)
    known = {RECEIPTS_KEY: receipts_digest, VERSION_KEY: str(FORMAT_VERSION)}
    write_frames(path, schema, parts, (metadata or {}) | known)
    return path


def has_table(layout: Layout, site: str, name: str) -> bool:
    """Whether the table was ever written."""
    return layout.table(site, name).is_file()


def is_stale(layout: Layout, site: str, name: str, receipts_digest: str) -> bool:
    """Whether the table was made from other receipts than `receipts_digest` says, and depends on them."""
    return find_table(name).from_receipts and made_from(layout, site, name) != receipts_digest


def made_from(layout: Layout, site: str, name: str) -> str:
    """The digest of the receipts that the table was made from."""
    return _metadata(_existing(layout, site, name), name).get(RECEIPTS_KEY, "")


def version_of(layout: Layout, site: str, name: str) -> int:
    """The format version that the table was written in."""
    return _version(_existing(layout, site, name), name)


def scan_table(layout: Layout, site: str, name: str, receipts_digest: str | None = None) -> pl.LazyFrame:
    """The table; InputError when it is absent, damaged or newer than this code, a warning when it is stale.

    Every page's checksum is compared here, once a process, for Polars checks none. `receipts_digest` is
    what `commits.receipts_digest` gives now; without it staleness is not checked.
    """
    path = _existing(layout, site, name)
    check_table(layout, site, name)
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
        if path.exists():
            raise InputError(f"{path} is a folder where a table should be: remove it, {_rerun(name)}")
        raise InputError(
            f"table {name!r} of site {site!r} does not exist ({path}): run `latentlake {job_of(name)}`"
        )
    return path


def check_table(layout: Layout, site: str, name: str) -> None:
    """InputError where a table is not, to the bit, what latentlake wrote: footer, columns and pages."""
    path = _existing(layout, site, name)
    version, metadata = _version(path, name), _metadata(path, name)
    if version >= _SEALED_SINCE and SEAL_KEY not in metadata:
        raise InputError(f"{path} was changed by a program other than latentlake: {_replace(name)}")
    with readable(path, _replace(name)):
        if isinstance(path, Path):
            about = path.stat()
            _check_pages(path, (about.st_size, about.st_mtime_ns, about.st_ino))
        else:
            _check_pages(path, path.size() if isinstance(path, ObjectPath) else None)
    table, columns = find_table(name), read_schema(path)
    for column, dtype in (table.schema() if table.schema else {}).items():
        if column not in columns and column not in table.added:
            raise InputError(f"{path} has no column {column!r}: {_replace(name)}")
        if columns.get(column, dtype) != dtype:
            raise InputError(
                f"{path} has a column {column!r} of {columns[column]}, which is of {dtype}: {_replace(name)}"
            )


@lru_cache(maxsize=1024)
def _check_pages(path: StorePath, mark: object) -> None:  # noqa: ARG001 - of the cache
    """Read every page; `mark` is what another content of the file has other, if that is cheap to know."""
    read_through(path)


def _version(path: StorePath, name: str) -> int:
    """The format version in a table's metadata."""
    recorded = _metadata(path, name).get(VERSION_KEY)
    if recorded is None:
        raise InputError(f"{path} has no format version, so latentlake did not write it: {_replace(name)}")
    version = int(recorded) if re.fullmatch("[0-9]{1,9}", recorded, re.ASCII) else recorded
    refuse_newer(version, str(path))
    assert isinstance(version, int)
    return version


def _metadata(path: StorePath, name: str) -> dict[str, str]:
    with readable(path, _replace(name)):
        return read_metadata(path)


def _replace(name: str) -> str:
    return f"delete it and {_rerun(name)}"


def _rerun(name: str) -> str:
    return f"run `latentlake {job_of(name)}`"
