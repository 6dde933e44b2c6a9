"""Contexts in which a feature does not fire, drawn by hash: what its examples are to be distinguished from.

Of each feature contexts are tried in an order of its own, which goes through all C of them: a, a + b,
a + 2 b … modulo C, where a and b are hashes of the feature and b shares no divisor with C. Those in which it
fires are struck out as shards are shown; the first that are left are its examples. The answer depends on the
features and the contexts alone. Shapes: F features, T contexts that are tried, over all features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.statistics.examples.examples import example_frame, rank_in_runs
from pipeline.statistics.features.samples import row_hash
from pipeline.statistics.splitmix import mixed
from schemas.values import I64, U64, TokenShard

TRIED = 1 << 16
"""Most contexts that are tried for one feature; one that fires nearly everywhere may find fewer examples."""


class NonFiring:
    """Of each feature `n` counted rows in contexts in which it never fires, or as many as there are."""

    def __init__(self, features: NDArray[Any], active_contexts: I64, contexts: int, n: int) -> None:
        """`features` [F] ascending fire in `active_contexts` int64 [F] of `contexts` contexts."""
        tries = _tries(active_contexts, contexts, n)
        self._n, self._features = n, features.astype(np.int64)
        self._owner = np.repeat(np.arange(len(features)), tries)
        self._context = _sequence(self._features, tries, contexts)
        self._by_context = np.argsort(self._context, kind="stable")
        self._sorted = self._context[self._by_context]
        self._alive = np.zeros(len(self._context), np.bool_)
        self._row = np.zeros(len(self._context), np.uint64)
        self._tried: tuple[I64, I64] = (np.empty(0, np.int64), np.empty(0, np.int64))
        self._width = 1

    def begin(self, shard: TokenShard, first_context: int) -> None:
        """Turn to a shard whose contexts are `first_context` and the following ones of all that are drawn."""
        bounds = np.searchsorted(self._sorted, [first_context, first_context + shard.n_contexts])
        places = self._by_context[slice(*bounds)]
        context = self._context[places] - first_context
        # counted rows before each context, and all of them: a draw below n is a place among its own
        counted = np.flatnonzero(shard.counted)
        ends = np.append(0, np.cumsum(shard.counted, dtype=np.int64))[shard.context_ptr]
        has = ends[context + 1] > ends[context]  # a context of special tokens alone is not an example
        places, context = places[has], context[has]
        n = (ends[context + 1] - ends[context]).astype(np.uint64)
        chosen = (row_hash(self._features[self._owner[places]], self._context[places]) % n).astype(np.int64)
        self._row[places] = (counted[ends[context] + chosen] + shard.row_start).astype(np.uint64)
        self._alive[places] = True
        self._width = shard.n_contexts
        tried = self._owner[places] * self._width + context
        order = np.argsort(tried)  # looked up in ascending order they stay in the caches
        self._tried = places[order], tried[order]

    def strike(self, features: NDArray[Any], counts: I64, contexts: I64) -> None:
        """Strike out where features fire: `features` [F] ascending, `counts` [F] of `contexts` [Z] of each.

        Contexts are counted from the shard's first and do not descend in a feature; any number of calls.
        """
        places, tried = self._tried
        owner = np.searchsorted(self._features, features.astype(np.int64))
        fired = np.repeat(owner * self._width, counts) + contexts
        # both ascend by (feature, context), so a try has fired where it is found among the fired
        if len(fired) and len(tried):
            at = np.minimum(np.searchsorted(fired, tried), len(fired) - 1)
            self._alive[places[fired[at] == tried]] = False

    def table(self) -> pl.DataFrame:
        """Examples of kind `random`, activation 0, in the order in which they were drawn."""
        left = np.flatnonzero(self._alive)
        rank = rank_in_runs(self._owner[left])
        left, rank = left[rank < self._n], rank[rank < self._n]
        interval, values = np.zeros(len(left), np.uint8), np.zeros(len(left), np.float32)
        rows: U64 = self._row[left]
        return example_frame("random", self._features[self._owner[left]], interval, rank, rows, values)


def _tries(active: I64, contexts: int, n: int) -> I64:
    """Contexts to try of each feature, so that it fires in fewer than all but n of them, int64 [F].

    Of T tries T q are left on average, q being the share of contexts in which it does not fire; where T q is
    2 n + 16, fewer than n are left less often than once in a million features (n = 10, binomially).
    """
    silent = np.maximum(contexts - active, 0) / max(contexts, 1)
    wanted = np.where(silent > 0, np.ceil((2 * n + 16) / np.maximum(silent, 1 / max(contexts, 1))), 0)
    return np.minimum(wanted, min(contexts, TRIED)).astype(np.int64)


def _sequence(features: I64, tries: I64, contexts: int) -> I64:
    """The first `tries` [F] contexts of each feature's order, int64 [T]."""
    start = mixed(features.astype(np.uint64) * np.uint64(2)) % np.uint64(max(contexts, 1))
    step = mixed(features.astype(np.uint64) * np.uint64(2) + np.uint64(1)) % np.uint64(max(contexts, 1))
    # a step that shares no divisor with C passes through all of them before one comes again
    while (shared := np.gcd(step, np.uint64(contexts)) != 1).any():
        step[shared] += np.uint64(1)
    # turn 0, 1, ... of each feature: the place among all tries less where the feature's own begin
    turn = np.arange(tries.sum()) - np.repeat(np.cumsum(tries) - tries, tries)
    place = np.repeat(start.astype(np.int64), tries) + turn * np.repeat(step.astype(np.int64), tries)
    sequence: I64 = place % max(contexts, 1)
    return sequence
