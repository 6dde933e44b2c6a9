"""How far a rank moves when other shards had been drawn: the bootstrap of B. Efron (1979) over shards.

A draw takes as many shards as there are, with replacement, so shard s is in it w times (multinomial weights).
Of each draw the sums of a feature are sums over shards, weighted; a column of the feature table is computed
of them, and features are ranked by it. Shards are what is drawn, because documents lie in one shard each, and
because then partials are all that is read.

Sums are of n, and of the powers of activation - c up to what a column needs, where c is the feature's mean
over all shards: no digits are lost, and from a shard's central sums they follow exactly.

Shapes: F features, B draws, S shards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from pipeline.statistics.features import moments
from pipeline.statistics.features.moments import Moments
from schemas.values import F64, I64, Totals

POWERS = {
    0: ("n_active", "frequency"),
    1: ("mean_all", "mean_active"),
    2: ("var_all", "std_all", "sigma_over_mu", "var_active", "std_active"),
    3: ("skewness_all", "skewness_active"),
    4: ("kurtosis_all", "kurtosis_active"),
}
"""Columns that can be computed of a draw, by the power of activations that they need."""

FEWEST_SHARDS = 10
"""Below this an interval of ranks is too narrow to trust: few shards cannot show how shards differ."""

_AT_ONCE = 512
"""Features whose sums are added to together: they stay in the processor's caches."""

ABSENT = -1
"""The rank of a feature without a value."""


def can_resample(column: str) -> bool:
    """Whether a column of the feature table can be computed of a draw."""
    return any(column in columns for columns in POWERS.values())


def highest_power(columns: Sequence[str]) -> int:
    """What the columns need."""
    return max((power for power, names in POWERS.items() for name in columns if name in names), default=0)


def draw_weights(draws: int, shards: int, seed: int) -> I64:
    """How often each shard is in each draw, int64 [B, S]; each row adds up to S."""
    chosen = np.random.default_rng(seed).integers(0, shards, (draws, shards))
    # draws side by side: one count over draws * shards instead of one for each draw
    chosen += np.arange(draws)[:, None] * shards
    return np.bincount(chosen.ravel(), minlength=draws * shards).reshape(draws, shards)


class Resampled:
    """Weighted sums of some features, added in shard order: 8 (power + 1) bytes for each feature and draw."""

    def __init__(self, centre: F64, draws: int, power: int) -> None:
        self._centre = centre
        self._sums = [np.zeros((len(centre), draws)) for _ in range(power + 1)]

    def add(self, features: I64, partials: pl.DataFrame, weights: I64) -> None:
        """Add a shard: features [f] counted from the first, their moments, how often each draw has it [B]."""
        n = partials["n_active"].to_numpy().astype(np.float64)
        shift = partials["mean"].to_numpy() - self._centre[features]
        # sums of (activation - c)^p, p = 0 .. 4, from the central sums, as far as there are any
        powers_of = [n, n * shift]
        central = [partials[name].to_numpy() for name in ("m2", "m3", "m4") if name in partials.columns]
        if central:
            powers_of.append(central[0] + n * shift**2)
        if len(central) > 1:
            powers_of.append(central[1] + 3 * shift * central[0] + n * shift**3)
        if len(central) > 2:
            fourth = central[2] + 4 * shift * central[1] + 6 * shift**2 * central[0] + n * shift**4
            powers_of.append(fourth)
        for sums, powers in zip(self._sums, powers_of, strict=False):
            for first in range(0, len(features), _AT_ONCE):
                some = slice(first, first + _AT_ONCE)
                sums[features[some]] += powers[some, None] * weights[None, :]

    def table(self, draw: int, counted_rows: int) -> pl.DataFrame:
        """Columns of the feature table (`moments.TABLE`) of one draw of so many counted rows: [F]."""
        n, *powers = (sums[:, draw] for sums in self._sums)
        fired = np.flatnonzero(n)
        # powers that no column needs are 0, and so are the moments made of them
        first, second, third, fourth = ([*powers, *([np.zeros(len(n))] * 4)])[:4]
        count = n[fired]
        d, s2, s3, s4 = first[fired] / count, second[fired], third[fired], fourth[fired]
        state = {
            "feature": fired,
            "n_active": count,
            "mean": self._centre[fired] + d,
            "m2": np.maximum(s2 - count * d**2, 0),
            "m3": s3 - 3 * d * s2 + 2 * count * d**3,
            "m4": s4 - 4 * d * s3 + 6 * d**2 * s2 - 3 * count * d**4,
        }
        schema = {"feature": pl.UInt32(), **moments.STATE}
        totals = Totals(rows=0, counted_rows=counted_rows, contexts=0, documents=0)
        return Moments().finalize(pl.DataFrame(state).cast(schema), totals, len(n))  # type: ignore[arg-type]


def ranks(values: F64) -> I64:
    """The place of each value [F] among those that are no NaN, the largest first, equal ones in order."""
    order = np.argsort(-values, kind="stable")  # NaN comes last
    rank_of = np.full(len(values), ABSENT, np.int64)
    order = order[: len(values) - int(np.isnan(values).sum())]
    rank_of[order] = np.arange(len(order))
    return rank_of


class RankIntervals:
    """The smallest and largest ranks of each feature: only those are kept that may be its quantiles.

    4 bytes a feature for each twentieth draw or so.
    """

    def __init__(self, n_features: int, draws: int) -> None:
        self._drawn = np.zeros(n_features, np.int64)
        self._small = np.full((_lower_place(draws) + 1, n_features), np.iinfo(np.int32).max, np.int32)
        self._large = np.full((_upper_place(draws) + 1, n_features), ABSENT, np.int32)

    def add(self, ranks: I64) -> None:
        """The ranks of one draw [F]."""
        has = ranks != ABSENT
        self._drawn += has
        # insertion into sorted rows: what a place gives up goes on to the next one
        new = np.where(has, ranks, np.iinfo(np.int32).max).astype(np.int32)
        for kept in self._small:
            kept[:], new = np.minimum(kept, new), np.maximum(kept, new)
        new = ranks.astype(np.int32)
        for kept in self._large:
            kept[:], new = np.maximum(kept, new), np.minimum(kept, new)

    def interval(self) -> tuple[I64, I64]:
        """The 2.5 % and 97.5 % quantiles (NumPy's inverted_cdf) over draws with a rank; -1 without one."""
        features = np.arange(len(self._drawn))
        drawn = np.maximum(self._drawn, 1)
        low = self._small[_lower_place(drawn), features].astype(np.int64)
        high = self._large[_upper_place(drawn), features].astype(np.int64)
        return np.where(self._drawn > 0, low, ABSENT), np.where(self._drawn > 0, high, ABSENT)


def _lower_place(draws: I64 | int) -> I64 | int:
    """Where the 2.5 % quantile stands among so many draws, from the smallest: ceil(0.025 draws) - 1."""
    return -(-draws // 40) - 1


def _upper_place(draws: I64 | int) -> I64 | int:
    """Where the 97.5 % quantile stands, from the largest: draws - ceil(0.975 draws)."""
    return draws - -(-39 * draws // 40)
