"""Compaction: the postings of all committed shards, one file per feature block, sorted by (feature, row).

Postings are sorted within a shard and cut at feature blocks, so merging is not a shuffle: where each shard's
rows of a feature go follows from the partials' counts. A task takes a range of blocks and puts in place as
many features as fit into memory at a time; a feature that does not fit is written shard by shard.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.statistics.features.ragged import runs_within
from pipeline.store.derived.features import site_ranges
from pipeline.store.formats.parquet import postings_arrow_schema, postings_writer
from pipeline.store.formats.postings import PostingsFile
from pipeline.store.objects.verbs import measure, put_if_absent, staged
from pipeline.store.reading.shard_files import ShardFiles, read_n_active
from pipeline.store.reading.site_access import SiteAccess, require_committed
from pipeline.store.reading.windows import concatenated_ranges
from pipeline.tasks import Tasks
from schemas.errors import InputError
from schemas.layout import POSTINGS, StorePath
from schemas.records import CompactedFile, Compaction
from schemas.values import I64, U64

GROUP_NNZ = 1 << 18
"""Activations in a row group: a feature is found by decoding one or two of them."""

IN_MEMORY_NNZ = 24 << 20
"""Activations put in place together, 10 or 12 bytes each."""

_RANGE_BYTES = 1 << 20
"""Of an average shard's postings in one range: less does not pay for opening the file once more."""


@dataclass(frozen=True)
class Piece:
    """Activations sorted by (feature, row): of each of `features` `counts` [F], `rows` [Z], `values` [Z]."""

    features: range
    counts: I64
    rows: U64
    values: Any

    @cached_property
    def offsets(self) -> I64:
        """Where each feature's activations begin, and where the last one's end, [F + 1]."""
        return np.append(0, np.cumsum(self.counts))

    def part(self, first: int, last: int) -> Piece:
        """Features first .. last - 1 of it."""
        some = slice(first - self.features.start, last - self.features.start)
        place = slice(int(self.offsets[some.start]), int(self.offsets[some.stop]))
        return Piece(range(first, last), self.counts[some], self.rows[place], self.values[place])

    def columns(self) -> tuple[Any, U64, Any]:
        """The columns feature, row and activation, as postings have them."""
        features = np.arange(self.features.start, self.features.stop, dtype=np.uint32)
        return np.repeat(features, self.counts), self.rows, self.values


def compact(store: SiteAccess, site: str, tasks: Tasks) -> Compaction:
    """Write and publish a compaction of all that is committed; InputError where there are no postings."""
    info, shards = store.site(site), store.shard_files(site)
    require_committed(store, site)
    if "feature_major" not in info.layouts:
        raise InputError(
            f"site {site!r} has no postings to compact: the pass was made with store.layouts "
            f"{list(info.layouts)}"
        )
    name = uuid.uuid4().hex
    folder = store.layout.compaction(info.pass_name, name) / site
    write = partial(_write_range, shards, folder, info.feature_block)
    written = tasks.map(write, site_ranges(store, site, POSTINGS, _RANGE_BYTES))
    compaction = Compaction(
        site=site,
        shards=tuple(store.receipts(site)),
        receipts=store.receipts_digest(site),
        files=tuple(file for files in written for file in files),
    )
    # the marker after all files: it is what publishes them
    put_if_absent(store.layout.compaction_marker(info.pass_name, name), compaction.to_json())
    return compaction


def merged(shards: Sequence[ShardFiles], features: range) -> Iterator[Piece]:
    """The activations of some features over all shards, in pieces that fit into memory.

    A feature that does not fit comes in several pieces, its rows ascending; no other does.
    """
    totals = read_n_active(shards, features)
    for run in runs_within(np.append(0, np.cumsum(totals)), IN_MEMORY_NNZ):
        some, n = features[run.start : run.stop], totals[run.start : run.stop]
        if n.sum() > IN_MEMORY_NNZ:
            yield from _in_sequence(shards, some)
        elif n.any():
            yield _in_memory(shards, some, n)


def _in_memory(shards: Sequence[ShardFiles], features: range, totals: I64) -> Piece:
    """Each shard's rows of a feature after those of the shards before."""
    # `free`: where the next row of each feature goes, as the shards before have filled its place
    ends = np.cumsum(totals)
    free = ends - totals
    rows, values = np.empty(int(ends[-1]), np.uint64), np.empty(int(ends[-1]), shards[0].activation_dtype)
    for shard in shards:
        for part in _parts(shard, features):
            if (free + part.counts > ends).any():
                raise _disagree(shard, features)
            place = concatenated_ranges(free, free + part.counts)
            rows[place], values[place] = part.rows, part.values
            free += part.counts
    if (free != ends).any():
        raise _disagree(shards[-1], features)
    return Piece(features, totals, rows, values)


def _in_sequence(shards: Sequence[ShardFiles], feature: range) -> Iterator[Piece]:
    """One feature's rows, shard after shard."""
    rows, values, n = list[Any](), list[Any](), 0
    for number, shard in enumerate(shards, 1):
        for part in _parts(shard, feature):
            rows.append(part.rows)
            values.append(part.values)
            n += len(part.rows)
        # whole row groups go on, for each piece begins a new one, and too small ones are slow to read
        if n >= 4 * GROUP_NNZ or (n and number == len(shards)):
            yield Piece(feature, np.array([n]), np.concatenate(rows), np.concatenate(values))
            rows, values, n = [], [], 0


def _parts(shard: ShardFiles, features: range) -> Iterator[Piece]:
    """What one shard's row groups hold of some features."""
    assert shard.postings is not None, "postings are what is merged"
    file = PostingsFile(shard.postings)
    for groups in file.runs_of(features):
        feature, rows, values = file.read_groups(groups)
        place = slice(*np.searchsorted(feature, np.array([features.start, features.stop], np.uint32)))
        owners = feature[place].astype(np.int64) - features.start
        yield Piece(features, np.bincount(owners, minlength=len(features)), rows[place], values[place])


def _write_range(
    shards: Sequence[ShardFiles], folder: StorePath, block: int, features: range
) -> list[CompactedFile]:
    """Write the files of a range of whole blocks."""

    def pieces() -> Iterator[Piece]:
        # a piece is as large as fits into memory, a file is a block: cut where a block begins
        for piece in merged(shards, features):
            some = piece.features
            edges = [some.start, *range((some.start // block + 1) * block, some.stop, block), some.stop]
            parts = (piece.part(first, last) for first, last in pairwise(edges))
            yield from (part for part in parts if len(part.rows))

    by_block = groupby(pieces(), key=lambda piece: piece.features.start // block * block)
    return [_write_block(folder, first, some, shards) for first, some in by_block]


def _write_block(
    folder: StorePath, first: int, pieces: Iterator[Piece], shards: Sequence[ShardFiles]
) -> CompactedFile:
    path, nnz = folder / f"{first:08d}.parquet", 0
    dtype = shards[0].activation_dtype
    schema = postings_arrow_schema(dtype)
    with staged(path) as temporary:
        with postings_writer(temporary, dtype, write_page_index=True) as writer:
            for piece in pieces:
                # whole features up to a row group together; a larger feature is cut by `row_group_size`
                for run in runs_within(piece.offsets, GROUP_NNZ):
                    part = piece.part(piece.features[run.start], piece.features[run.stop - 1] + 1)
                    if len(part.rows):
                        table = pa.Table.from_arrays(list(map(pa.array, part.columns())), schema=schema)
                        writer.write_table(table, row_group_size=GROUP_NNZ)
                nnz += len(piece.rows)
        size, sha256 = measure(temporary)  # here, for object storage would send it all back
    name = f"{folder.name}/{path.name}"
    return CompactedFile(path=name, bytes=size, sha256=sha256, first_feature=first, nnz=nnz)


def _disagree(shard: ShardFiles, features: range) -> InputError:
    return InputError(
        f"postings and partials up to {shard.postings} do not count the same activations of features "
        f"{features.start} to {features.stop - 1}: run `latentlake verify`"
    )
