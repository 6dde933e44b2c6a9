"""Windows of tokens around rows; those of examples with the feature's activation at every token.

`Windows` says which rows a window has, for all that shows tokens: queries, exports, and `cut_windows`, which
writes those of a report. That is one pass over the shards, a task each: examples go by row, so a shard's are
neighbours; their contexts are cut out of the token shard, and the activations out of the CSR, by some ten
thousand examples at a time. The windows lie in Parquet files in a scratch folder, each sorted by feature, for
the pages are made by feature.

Cost: each shard's CSR and tokens are read once; an example takes some 150 bytes of the scratch folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.store.reading.contexts import ContextIndex
from pipeline.store.reading.shard_files import ShardFiles
from pipeline.store.reading.site_access import SiteAccess
from pipeline.store.records.tokens import read_token_shard
from pipeline.tasks import Tasks
from schemas.layout import Layout
from schemas.records import Lake, ShardRecord
from schemas.values import F32, I32, I64, U64, TokenShard

if TYPE_CHECKING:
    from scipy import sparse

BEFORE, AFTER = 24, 8
"""Tokens of the context before and after the example's row."""

EXAMPLES_AT_ONCE = 1 << 14
LABEL = "label:"
"""What the name of a label's column begins with: a label may be called as any other column."""

_GROUP = 1 << 10
"""Rows in a row group of what is found, so that a range of features is read from few of them."""


@dataclass(frozen=True)
class Windows:
    """A window around each of Q rows, within its context; all arrays int64 [Q].

    `context` is the context's number, `begin` and `end` are its first row and the row after its last, `first`
    and `stop` those of the window. Rows are counted as in `context_ptr` [C + 1]: from a shard's first or from
    the lake's.
    """

    context: I64
    begin: I64
    end: I64
    first: I64
    stop: I64

    @classmethod
    def around(cls, rows: I64, context_ptr: I64, before: int | None, after: int | None) -> Windows:
        """So many rows before and after each, fewer at the context's ends; None: all that there are."""
        context = np.searchsorted(context_ptr, rows, side="right") - 1
        begin, end = context_ptr[context], context_ptr[context + 1]
        first = begin if before is None else np.maximum(begin, rows - before)
        stop = end if after is None else np.minimum(end, rows + after + 1)
        return cls(context, begin, end, first, stop)

    @classmethod
    def of_size(cls, rows: I64, context_ptr: I64, size: int) -> Windows:
        """`size` rows, three quarters of them before the row if it has so many; or the whole context."""
        wide = cls.around(rows, context_ptr, size * 3 // 4, None)
        # a window that would pass the context's end starts so much earlier, but not before the context
        first = np.minimum(wide.first, np.maximum(wide.end - size, wide.begin))
        return replace(wide, first=first, stop=np.minimum(first + size, wide.end))

    def shifted(self, rows: int, contexts: int) -> Windows:
        """The same, rows and contexts counted from so much earlier."""
        of_rows = (self.begin + rows, self.end + rows, self.first + rows, self.stop + rows)
        return Windows(self.context + contexts, *of_rows)

    @property
    def lengths(self) -> I64:
        """Rows of each window."""
        return self.stop - self.first


@dataclass(frozen=True)
class Cut:
    """What a task needs to cut windows out of one shard."""

    layout: Layout
    lake: Lake
    d_sae: int
    examples: Path
    """The chosen examples, sorted by row: feature, kind, interval, rank, row, activation."""
    out: Path


def cut_windows(
    store: SiteAccess, site: str, examples: pl.DataFrame, folder: Path, tasks: Tasks
) -> Iterator[int]:
    """Write the windows of `examples` (rows of that table) into `folder`; yields how many, by shard.

    Columns: those of the table, then `context` u64, `position` u32, `document` u64, the labels of the row,
    `token_ids` list[i32], `values` list[f32] (the feature's activation at each token), `firing` u32 (the
    row's place in both) and `from_start`, `to_end`: whether the window reaches the ends of the context.
    """
    by_row = folder / "examples_by_row.parquet"
    examples.sort("row", "feature", "kind").write_parquet(by_row, row_group_size=1 << 16)
    cut = Cut(store.layout, store.lake, store.site(site).d_sae, by_row, folder)
    yield from tasks.map(partial(_cut_shard, cut), store.shard_files(site))


def windows_of(contexts: ContextIndex, examples: pl.DataFrame, rows: U64, values: F32) -> pl.DataFrame:
    """The windows of some examples of one feature, with the columns that `cut_windows` writes.

    `rows` uint64 [Z], ascending, and `values` float32 [Z] are all that the feature has.
    """
    numbers = examples["row"].to_numpy()
    around = Windows.around(numbers.astype(np.int64), contexts.row_starts, BEFORE, AFTER)
    places = concatenated_ranges(around.first, around.stop).astype(np.uint64)
    near = np.zeros(len(places), np.float32)
    # a search ends at the next larger row where the feature is silent, or after the last one
    at = np.searchsorted(rows, places)
    fires = at < len(rows)
    fires[fires] = rows[at[fires]] == places[fires]
    near[fires] = values[at[fires]]
    return _described(contexts, examples, around, contexts.tokens_in(around.first, around.stop), near)


def window_files(folder: Path) -> list[Path]:
    """The files that `cut_windows` wrote."""
    return sorted(folder.glob("windows-*.parquet"))


def read_windows(files: Sequence[Path], first: int, last: int) -> pl.DataFrame:
    """The windows of features first .. last, by feature, kind, interval and rank."""
    if not files:
        return pl.DataFrame(schema={"feature": pl.UInt32()})
    windows = pl.scan_parquet(list(files), glob=False).filter(pl.col("feature").is_between(first, last))
    return windows.collect().sort("feature", "kind", "interval", "rank")


def _cut_shard(cut: Cut, shard: ShardFiles) -> int:
    record = shard.record
    inside = pl.col("row").is_between(record.row_start, record.row_start + record.rows, closed="left")
    examples = pl.scan_parquet(cut.examples).filter(inside).collect()
    if examples.is_empty():
        return 0
    tokens = read_token_shard(cut.layout, cut.lake, record, verify=False)
    index, matrix = ContextIndex(cut.layout, cut.lake, [record]), shard.read_csr()
    for number, start in enumerate(range(0, examples.height, EXAMPLES_AT_ONCE)):
        windows = _cut(tokens, index, matrix, examples.slice(start, EXAMPLES_AT_ONCE))
        path = cut.out / f"windows-{record.name}-{number:05d}.parquet"
        windows.sort("feature", "kind", "interval", "rank").write_parquet(path, row_group_size=_GROUP)
    return examples.height


def _cut(
    tokens: TokenShard, index: ContextIndex, matrix: sparse.csr_matrix, examples: pl.DataFrame
) -> pl.DataFrame:
    rows = examples["row"].to_numpy().astype(np.int64) - tokens.row_start
    windows = Windows.around(rows, tokens.context_ptr, BEFORE, AFTER)
    places = concatenated_ranges(windows.first, windows.stop)
    features = np.repeat(examples["feature"].to_numpy(), windows.lengths)
    near = activations(matrix, places, features)
    of_lake = windows.shifted(tokens.row_start, tokens.context_start)
    return _described(index, examples, of_lake, tokens.token_ids[places], near)


def _described(
    index: ContextIndex, examples: pl.DataFrame, windows: Windows, token_ids: I32, values: F32
) -> pl.DataFrame:
    """Examples with their windows, counted from the lake's first row: tokens and activations one by one."""
    numbers = examples["row"].to_numpy()
    rows, labels = numbers.astype(np.int64), index.labels
    columns = {
        "context": windows.context.astype(np.uint64),
        "position": (rows - windows.begin).astype(np.uint32),
        "token_ids": _lists(token_ids, windows.lengths),
        "values": _lists(values, windows.lengths),
        "firing": (rows - windows.first).astype(np.uint32),
        "from_start": windows.first == windows.begin,
        "to_end": windows.stop == windows.end,
    }
    described = index.describe(numbers, ["document", *labels])
    described = described.rename({name: LABEL + name for name in labels})
    return examples.hstack(described).hstack(pl.DataFrame(columns))


def activations(matrix: sparse.csr_matrix, rows: I64, features: I64) -> F32:
    """The matrix' values at pairs of row and feature, float32 [Q]; only these rows are read.

    In CSR a row's indices ascend, so (row, feature) as one number ascends too: one binary search for each.
    """
    # windows overlap, so a row is looked up once however often it is requested
    needed, place = np.unique(rows, return_inverse=True)
    some = matrix[needed]
    width = np.int64(matrix.shape[1])
    keys = np.repeat(np.arange(len(needed)), np.diff(some.indptr)) * width + some.indices
    wanted = place * width + features
    # a search ends at the next larger key where the feature is silent, or after the last one
    positions = np.searchsorted(keys, wanted)
    known = positions < len(keys)
    known[known] = keys[positions[known]] == wanted[known]
    values = np.zeros(len(rows), np.float32)
    values[known] = some.data[positions[known]]
    return values


def example_tokens(store: SiteAccess, site: str, examples: pl.DataFrame, tasks: Tasks) -> pl.DataFrame:
    """The rows of `examples` with the token at each: column `token_id` i32; those of no shard are lost."""
    rows = examples.sort("row")
    numbers, parts, items = rows["row"].to_numpy(), [examples.clear()], []
    # rows ascend, and so do shards: those of one lie together
    for record in store.committed(site):
        low, high = np.searchsorted(numbers, [record.row_start, record.row_start + record.rows])
        parts.append(rows.slice(int(low), int(high - low)))
        items.append((record, parts[-1]["row"]))
    token_ids = tasks.map(partial(_tokens_at, store.layout, store.lake), items)
    return pl.concat(parts).with_columns(pl.concat([pl.Series("token_id", [], pl.Int32), *token_ids]))


def _tokens_at(layout: Layout, lake: Lake, item: tuple[ShardRecord, pl.Series]) -> pl.Series:
    record, rows = item
    tokens = read_token_shard(layout, lake, record, verify=False)
    return pl.Series("token_id", tokens.token_ids[rows.to_numpy().astype(np.int64) - record.row_start])


def concatenated_ranges(first: I64, stop: I64) -> I64:
    """first[0] .. stop[0] - 1, first[1] .. stop[1] - 1, and so on: int64 [sum of stop - first]."""
    lengths = stop - first
    # each range starts at first, less what np.arange has counted in the ranges before it
    starts = np.repeat(first - np.append(0, np.cumsum(lengths)[:-1]), lengths)
    return starts + np.arange(int(lengths.sum()))


def _lists(values: NDArray[Any], lengths: I64) -> pl.Series:
    ends = np.append(0, np.cumsum(lengths))
    series = pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(ends), pa.array(values)))
    assert isinstance(series, pl.Series)
    return series
