"""How often each feature fires on each token, or at each position: only pairs that occur are held.

Shapes: F features, P pairs of a feature and a token (or position) that occur, Z activations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.statistics.features.ragged import run_starts
from schemas.values import F64, I64

_WAITING = 1 << 20
"""Activations that wait to be counted, or as many as there are pairs: counting is then linear in both."""

PAIR_BYTES = 64
"""Memory for each pair, while two tallies are made one."""

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
    """Counts by feature and column, both numbers below 2^31; the order of additions changes nothing."""

    def __init__(self) -> None:
        self._keys, self._counts = np.empty(0, np.int64), np.empty(0, np.int64)
        self._waiting: list[I64] = []
        self._n_waiting = 0

    def add(self, features: I64, columns: I64) -> None:
        """One more for each feature [Z] at its column [Z]."""
        self._waiting.append(features << _SHIFT | columns)
        self._n_waiting += len(features)
        if self._n_waiting > max(_WAITING, len(self._keys)):
            self._count()

    def _count(self) -> None:
        keys = np.sort(np.concatenate([*self._waiting, np.empty(0, np.int64)]))
        starts = run_starts(keys)
        new = np.diff(starts, append=len(keys))
        keys = np.concatenate([self._keys, keys[starts]])
        order = np.argsort(keys, kind="stable")  # merges two ascending runs
        keys, counts = keys[order], np.concatenate([self._counts, new])[order]
        starts = run_starts(keys)
        self._keys = keys[starts]
        self._counts = np.add.reduceat(counts, starts) if len(starts) else counts
        self._waiting, self._n_waiting = [], 0

    def counts(self) -> tuple[I64, I64, I64]:
        """Features, columns and counts of all pairs, by feature, then column: [P]."""
        self._count()
        return self._keys >> _SHIFT, self._keys & ((1 << _SHIFT) - 1), self._counts

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
