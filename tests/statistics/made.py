"""Made-up shards whose dense activations are at hand for brute force."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import polars.selectors as cs
from numpy.typing import NDArray
from polars.testing import assert_frame_equal

import pipeline.statistics as statistics
from pipeline.statistics.features.statistic import FEATURE, Statistic
from pipeline.statistics.l0 import combine_counts, l0_counts
from schemas.values import Postings, TokenShard, Totals

F32 = NDArray[np.float32]


def postings_of(dense: F32) -> Postings:
    """Postings of dense activations [N, d_sae]."""
    features, rows = np.nonzero(dense.T)
    fired, counts = np.unique(features, return_counts=True)
    offsets = np.append(0, np.cumsum(counts)).astype(np.int64)
    return Postings(fired.astype(np.uint32), offsets, rows.astype(np.int64), dense[rows, features])


@dataclass(frozen=True)
class Made:
    """One shard with its dense activations [N, d_sae]."""

    tokens: TokenShard
    dense: F32

    @property
    def postings(self) -> Postings:
        return postings_of(self.dense)

    @property
    def row_counts(self) -> pl.DataFrame:
        indptr = np.append(0, np.cumsum((self.dense != 0).sum(1))).astype(np.int64)
        return l0_counts(indptr, self.tokens.counted)

    @property
    def totals(self) -> Totals:
        t = self.tokens
        counted = t.counted
        return Totals(
            t.n_rows,
            int(counted.sum()),
            len(np.unique(t.context_of_row()[counted])),
            len(np.unique(t.document[counted])),
        )


def shard_around(
    dense: F32, row_start: int = 0, context_start: int = 0, context: int = 8, document: int = 11
) -> Made:
    """A shard with contexts of `context` rows, documents of `document` rows, and every row counted."""
    n = len(dense)
    ptr = np.append(np.arange(0, n, context), n) if n else np.zeros(1)
    everything = np.ones(n, np.bool_)
    documents = ((row_start << 20) + np.arange(n) // document).astype(np.uint64)  # no two shards share one
    tokens = TokenShard(
        "made",
        row_start,
        context_start,
        np.zeros(n, np.int32),
        ptr.astype(np.int64),
        everything,
        everything,
        documents,
    )
    return Made(tokens, dense)


def dense_rows(
    rng: np.random.Generator, n: int, d_sae: int, density: float = 0.2, signed: bool = False
) -> F32:
    """Log-normal activations rounded to float16; the last feature never fires, the one before it once."""
    values = np.exp(rng.normal(size=(n, d_sae))) * (rng.random((n, d_sae)) < density)
    if signed:
        values *= rng.choice([-1.0, 1.0], size=values.shape)
    values[:, -2:] = 0
    return values.astype(np.float16).astype(np.float32)


def made_shards(sizes: Sequence[int], d_sae: int = 12, seed: int = 0, signed: bool = False) -> list[Made]:
    """Shards of so many rows each; some rows are not counted and hold nothing."""
    rng = np.random.default_rng(seed)
    shards: list[Made] = []
    row = context = 0
    for n in sizes:
        made = shard_around(dense_rows(rng, n, d_sae, signed=signed), row, context)
        uncounted = rng.random(n) < 0.1
        made.dense[uncounted] = 0
        made.tokens.counted[uncounted] = False
        shards.append(made)
        row, context = row + n, context + made.tokens.n_contexts
    widest = max(shards, key=lambda made: int(made.tokens.counted.sum()))
    widest.dense[np.flatnonzero(widest.tokens.counted)[:1], d_sae - 2] = 1.5
    return shards


def as_one(shards: Sequence[Made]) -> Made:
    """The same contexts and documents as a single shard."""
    parts = [made.tokens for made in shards]
    ptr = [part.context_ptr[:-1] + part.row_start for part in parts] + [[sum(part.n_rows for part in parts)]]
    stack = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("token_ids", "counted", "stored", "document")
    }
    tokens = TokenShard("made", 0, 0, context_ptr=np.concatenate(ptr).astype(np.int64), **stack)
    return Made(tokens, np.concatenate([made.dense for made in shards]))


def fold(statistic: Statistic, shards: Sequence[Made]) -> pl.DataFrame:
    """One statistic of several shards, merged in their order."""
    partials = [statistic.partial(made.postings, made.tokens) for made in shards]
    empty = pl.DataFrame(schema=FEATURE | statistic.state)
    return functools.reduce(lambda a, b: statistic.combine([a, b]), partials, empty)


def table_of(shards: Sequence[Made]) -> pl.DataFrame:
    """The feature table of several shards."""
    partials = [statistics.partials(made.postings, made.tokens) for made in shards]
    state = statistics.combine([statistics.empty_state(), *partials])
    counts = combine_counts([made.row_counts for made in shards])
    return feature_table(state, totals_of(shards), shards[0].dense.shape[1], counts)


def feature_table(state: pl.DataFrame, totals: Totals, d_sae: int, counts: pl.DataFrame) -> pl.DataFrame:
    """The feature table in one range, checked against the merged L0 counts as `stats` does."""
    table = statistics.finalize(state, totals, range(d_sae))
    statistics.check_counts(int(state["n_active"].sum()), totals, counts)
    return table


def totals_of(shards: Sequence[Made]) -> Totals:
    """Denominators of several shards."""
    return functools.reduce(lambda a, b: a + b, [made.totals for made in shards])


def counted_values(shards: Sequence[Made], feature: int) -> NDArray[np.float64]:
    """The feature's activation in every counted row, zeros included."""
    whole = as_one(shards)
    return whole.dense[whole.tokens.counted, feature].astype(np.float64)


def same_frame(a: pl.DataFrame, b: pl.DataFrame) -> None:
    """Equal to the last bit, nulls and order included."""
    assert a.schema == b.schema
    assert a.equals(b)


def same_bits(a: pl.DataFrame, b: pl.DataFrame) -> None:
    """Equal, and with zeros of the same sign."""
    same_frame(a, b)
    floats = a.select(cs.float())
    for name in floats.columns:
        assert a[name].to_numpy().tobytes() == b[name].to_numpy().tobytes(), name


def close_frame(a: pl.DataFrame, b: pl.DataFrame) -> None:
    """Equal, but for the rounding of float64 sums."""
    assert_frame_equal(a, b, rel_tol=1e-10, abs_tol=1e-9)
