"""What a feature fires on: tokens, positions, contexts, documents and their labels.

A `Profiler` takes the activations of a range of features, shard by shard in shard order, and gives their rows
of the tables `profile`, `labels` and `label_trends`, and their pairs with tokens. Counts are whole numbers,
and other sums are added up in the order of rows, documents and shards, so the tables have the same bits for
any ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.statistics.documents.clustered import DocumentSums, document_pairs, document_rows
from pipeline.statistics.documents.comparison import frequency_difference
from pipeline.statistics.documents.document_groups import Grouping, GroupSums, together, without
from pipeline.statistics.documents.intervals import effective, frequency_interval, rule_of_three
from pipeline.statistics.documents.trends import TrendSums
from pipeline.statistics.features.ragged import run_starts
from pipeline.statistics.profile.tallies import Tally
from schemas.tables.tables import LABELS, PROFILE, TOKEN_FEATURES, Schema
from schemas.values import F64, I64, Postings, TokenShard

FIRST_POSITIONS = 2
"""Positions 0 and 1: BOS, or what stands in its place, and the first token after it."""


TOKEN_PAIRS: Schema = {name: dtype for name, dtype in TOKEN_FEATURES.items() if name != "recall"}
"""The table `token_features` before the tokens' occurrences are known."""
LEFT_OUT: Schema = {"token_id": pl.Int32(), "left_out": pl.Int64()}


@dataclass(frozen=True)
class ShardRows:
    """What is known of a shard's rows, int64 [N], and documents, int64 [M]."""

    token: I64
    position: I64
    context: I64
    """Its number in the lake."""
    document: I64
    """Counted from the shard's first."""
    counted: I64
    """Counted rows of each document."""
    groups: list[I64]
    """`Grouping.groups` of the documents."""
    numbers: list[F64]
    """`Grouping.numbers` of the documents, float64 [M]."""

    @classmethod
    def of(cls, shard: TokenShard, grouping: Grouping, labels: pl.DataFrame) -> ShardRows:
        """Of a shard; `labels` has a row for each of its documents, in their order."""
        document, counted = document_rows(shard)
        documents = shard.document[run_starts(document)]
        assert np.array_equal(labels["document"].to_numpy(), documents), "documents and their labels differ"
        return cls(
            shard.token_ids.astype(np.int64),
            shard.position_of_row(),
            shard.context_of_row(),
            document,
            counted,
            grouping.groups(labels),
            grouping.numbers(labels),
        )


class Profiler:
    """Of some features; memory as `tallies` says for each token and position that one fires on, 40 bytes for
    each group.
    """

    def __init__(self, features: range, grouping: Grouping, *, token_sums: bool = False) -> None:
        """`token_sums`: whether `token_pairs` is called for."""
        self._features, self._grouping = features, grouping
        self._tokens, self._positions = Tally(sums=token_sums), Tally()
        self._sums = GroupSums(len(features), grouping)
        self._trends = TrendSums(len(features), grouping.numeric)
        self._first = np.full(len(features), -1, np.int64)
        self._last = np.full(len(features), -1, np.int64)

    def add(self, postings: Postings, rows: ShardRows) -> None:
        """Activations of some of the features in the next shard; rows counted from the shard's first."""
        if not postings.nnz:
            return
        fired = postings.features.astype(np.int64) - self._features.start
        moved = Postings(fired.astype(np.uint32), postings.offsets, postings.rows, postings.values)
        features = np.repeat(fired, np.diff(postings.offsets))
        self._tokens.add(features, rows.token[postings.rows], postings.values)
        self._positions.add(features, rows.position[postings.rows])
        pairs = document_pairs(moved, rows.document)
        self._sums.add(pairs, rows.groups, rows.counted)
        self._trends.add(pairs, rows.numbers, rows.counted)
        # rows ascend in a feature, and shards come in order: the first is kept, the last replaced
        first, last = postings.rows[postings.offsets[:-1]], postings.rows[postings.offsets[1:] - 1]
        self._first[fired] = np.where(self._first[fired] < 0, rows.context[first], self._first[fired])
        self._last[fired] = rows.context[last]

    def profile(self) -> pl.DataFrame:
        """The rows of the table `profile` (`schemas.tables.tables.PROFILE`)."""
        n_features = len(self._features)
        whole = self._sums.everywhere()
        active, totals = whole.columns["active"], whole.totals
        interval = frequency_interval(whole.estimate("active"))
        tokens, positions = (tally.concentration(n_features) for tally in (self._tokens, self._positions))
        first = self._positions.below(FIRST_POSITIONS, n_features)
        fired = active > 0
        never: dict[str, Any] = {
            "dead_upper": rule_of_three(effective(totals)),
            "dead_upper_rows": rule_of_three(totals.rows),
        }
        of_fired = {
            "top_token": tokens.top,
            "top_token_share": tokens.top_count / np.maximum(active, 1),
            "token_entropy_bits": tokens.entropy_bits,
            "position_entropy_bits": positions.entropy_bits,
            "first_positions_share": first / np.maximum(active, 1),
            "first_context": self._first,
            "last_context": self._last,
        }
        columns = {
            "feature": np.arange(self._features.start, self._features.stop),
            "frequency_se": interval.error,
            "frequency_low": interval.low,
            "frequency_high": interval.high,
            **{name: _where(~fired, np.full(n_features, bound)) for name, bound in never.items()},
            "tokens": tokens.distinct,
            **{name: _where(fired, column) for name, column in of_fired.items()},
        }
        table = pl.DataFrame(columns).cast(PROFILE).select(*PROFILE)  # type: ignore[arg-type]
        return table.fill_nan(None)

    def token_pairs(self, least: int) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Pairs of a token and a feature that fires in at least so many rows of it (TOKEN_PAIRS), by feature,
        then token; and by token how many pairs of fewer rows are left out (LEFT_OUT).
        """
        features, tokens, counts = self._tokens.counts()
        active = np.bincount(features, counts, minlength=1)[features]  # whole numbers below 2^53
        kept = counts >= least
        columns = {
            "token_id": tokens,
            "feature": features + self._features.start,
            "n_active": counts,
            "precision": counts / active,
            "mean_active": self._tokens.sums() / counts,
        }
        pairs = pl.DataFrame({name: column[kept] for name, column in columns.items()}).cast(TOKEN_PAIRS)  # type: ignore[arg-type]
        left_out = np.unique(tokens[~kept], return_counts=True)
        return pairs, pl.DataFrame(dict(zip(LEFT_OUT, left_out, strict=True))).cast(LEFT_OUT)  # type: ignore[arg-type]

    def labels(self) -> pl.DataFrame:
        """The rows of the table `labels`, q left out, by feature, then label, then value in their order.

        Features that never fire where a label has a value, and of which that says nothing, have none.
        """
        frames = [pl.DataFrame(schema=LABELS)]
        for label in self._grouping.labels:
            groups = self._sums.of(label)
            whole = together(groups)
            for value, group in zip(label.values, groups, strict=False):  # the last group: other values
                if group.totals.rows:
                    frames.append(self._value(label.name, value, group, without(whole, group)))
        return pl.concat(frames).sort("feature", maintain_order=True)

    def trends(self) -> pl.DataFrame:
        """The rows of the table `label_trends`, q left out, by feature, then label."""
        return self._trends.table(self._features.start)

    def _value(self, label: str, value: str, here: DocumentSums, elsewhere: DocumentSums) -> pl.DataFrame:
        """One value of one label: the documents that have it against those that have another."""
        n_active, rows = here.columns["active"], here.totals.rows
        difference, z, p = frequency_difference(elsewhere, here)
        frame = pl.DataFrame(
            {
                "feature": np.arange(self._features.start, self._features.stop, dtype=np.uint32),
                "label": [label] * len(n_active),
                "value": [value] * len(n_active),
                "rows": np.full(len(n_active), rows),
                "n_active": n_active,
                "frequency": n_active / rows,
                "mean_all": here.columns["total"] / rows,
                "difference": difference,
                "z": z,
                "p": p,
                "q": np.full(len(n_active), np.nan),
            },
            schema=LABELS,
            nan_to_null=True,
        )
        return frame.filter((pl.col("n_active") > 0) | pl.col("p").is_not_null())


def with_q(labels: pl.DataFrame, family: Sequence[str] = ("label", "value")) -> pl.DataFrame:
    """The table `labels` with q: Benjamini and Hochberg's (1995) over the features of a value with a p.

    Each value of a label is a question of its own: of the features called different at q 0.05 for it one in
    twenty is expected not to be. Of `label_trends` the `family` is the label alone.
    """
    p = pl.col("p")
    tested = labels.with_row_index("place").filter(p.is_not_null())
    # from the largest p down: p n / rank, and the smallest of those so far
    ranked = tested.sort("p", descending=True, maintain_order=True).select(
        "place",
        *family,
        raised=p * pl.len().over(family) / (pl.len().over(family) - pl.int_range(pl.len()).over(family)),
    )
    q = ranked.select("place", q=pl.col("raised").cum_min().over(family).clip(upper_bound=1.0))
    adjusted = labels.drop("q").with_row_index("place").join(q, on="place", how="left", maintain_order="left")
    return adjusted.select(*labels.columns)


def _where(condition: NDArray[np.bool_], values: NDArray[Any]) -> pl.Series:
    """Values where the condition holds, else null."""
    return pl.Series(values).set(pl.Series(~condition), None)
