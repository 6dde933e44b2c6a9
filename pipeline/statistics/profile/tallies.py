"""How often each feature fires on each token, or at each position, and how strongly: only pairs that occur.

Shapes: F features, P pairs of a feature and a token (or position) that occur, Z activations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.statistics.features.ragged import run_starts
from schemas.values import F32, F64, I64

_WAITING = 1 << 20
"""Activations that wait to be counted, or as many as there are pairs: counting is then linear in both."""

PAIR_BYTES, SUM_BYTES = 64, 64
"""Memory for each pair, while two tallies are made one; of a tally with sums so much more."""

_SHIFT = 32


class Concentration(NamedTuple):
    """Of each feature, [F]: distinct columns, the most frequent one (the lowest of equals) and its count,
    all int64, and the entropy over columns in bits, float64; 0 where it never fired.
    """

    distinct: I64
    top: I64
    top_count: I64
    entropy_bits: F64


class Tally:
    """Counts by feature and column, both numbers below 2^31; the order of additions changes nothing.

    With `sums` also the sum of a value of each pair. A pair's values are added one by one in the order in
    which they come, however many wait together, so a sum depends on that order alone.
    """

    def __init__(self, *, sums: bool = False) -> None:
        self._keys, self._counts = np.empty(0, np.int64), np.empty(0, np.int64)
        self._sums: F64 | None = np.empty(0) if sums else None
        self._waiting: list[I64] = []
        self._values: list[F32] = []
        self._n_waiting = 0

    def add(self, features: I64, columns: I64, values: F32 | None = None) -> None:
        """One more for each feature [Z] at its column [Z], with its value [Z] where there are sums."""
        self._waiting.append(features << _SHIFT | columns)
        if self._sums is not None:
            assert values is not None, "a tally with sums takes values"
            self._values.append(values)
        self._n_waiting += len(features)
        if self._n_waiting > max(_WAITING, len(self._keys)):
            self._count()

    def _count(self) -> None:
        keys, values = np.concatenate([*self._waiting, np.empty(0, np.int64)]), np.empty(0)
        if self._sums is None:
            keys = np.sort(keys)
        else:  # stable, so that the values of a pair stay in their order
            order = np.argsort(keys, kind="stable")
            values = np.concatenate([*self._values, np.empty(0, np.float32)])[order].astype(np.float64)
            keys = keys[order]
        starts = run_starts(keys)
        new = np.diff(starts, append=len(keys))
        keys = np.concatenate([self._keys, keys[starts]])
        order = np.argsort(keys, kind="stable")  # merges two ascending runs
        keys, counts = keys[order], np.concatenate([self._counts, new])[order]
        starts = run_starts(keys)
        if self._sums is not None:
            # where each pair stands in the merged order, the old pairs first
            place = np.empty(len(keys), np.int64)
            place[order] = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(keys)))
            sums, old = np.zeros(len(starts)), len(self._keys)
            sums[place[:old]] = self._sums
            np.add.at(sums, np.repeat(place[old:], new), values)
            self._sums = sums
        self._keys = keys[starts]
        self._counts = np.add.reduceat(counts, starts) if len(starts) else counts
        self._waiting, self._values, self._n_waiting = [], [], 0

    def counts(self) -> tuple[I64, I64, I64]:
        """Features, columns and counts of all pairs, by feature, then column: [P]."""
        self._count()
        return self._keys >> _SHIFT, self._keys & ((1 << _SHIFT) - 1), self._counts

    def sums(self) -> F64:
        """The sums of all pairs, in the order of `counts`: [P]."""
        self._count()
        assert self._sums is not None, "a tally without sums"
        return self._sums

    def below(self, column: int, n_features: int) -> I64:
        """Counts in columns before `column`, int64 [F]."""
        features, columns, counts = self.counts()
        n_below = np.zeros(n_features, np.int64)
        np.add.at(n_below, features[columns < column], counts[columns < column])
        return n_below

    def concentration(self, n_features: int) -> Concentration:
        """What the counts of each feature 0 .. n_features - 1 say.

        The entropy is C. E. Shannon's of the shares as they were counted: of few activations it is too low.
        """
        features, columns, counts = self.counts()
        zeros = np.zeros(n_features, np.int64)
        concentration = Concentration(zeros, zeros.copy(), zeros.copy(), np.zeros(n_features))
        if not len(features):
            return concentration
        starts = run_starts(features)
        fired, sizes = features[starts], np.diff(starts, append=len(features))
        most = np.maximum.reduceat(counts, starts)
        # of the columns with the most the first of a feature's run, which is the lowest
        first = np.flatnonzero(counts == np.repeat(most, sizes))
        share = counts / np.repeat(np.add.reduceat(counts, starts), sizes)
        concentration.distinct[fired] = sizes
        concentration.top[fired] = columns[first[run_starts(features[first])]]
        concentration.top_count[fired] = most
        concentration.entropy_bits[fired] = np.abs(np.add.reduceat(share * np.log2(share), starts))
        return concentration
