"""The tables `token_features` and `token_counts`: pairs that come by ranges of features, written by token.

The pairs of each range of features go into a file of a scratch folder, sorted by token. When all are there,
how many pairs each token has is known, and tokens are taken in runs of some RUN_PAIRS pairs: of each file the
row groups of these tokens are read. Memory: 40 bytes for each pair of a run, and twice that while it is
sorted, and 24 bytes for each token. The scratch folder takes at most some 32 bytes for each pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.statistics.features.ragged import runs_within
from schemas.tables.tables import TOKEN_COUNTS, TOKEN_FEATURES
from schemas.values import I64

RUN_PAIRS = 1 << 21
_GROUP = 1 << 14
"""Pairs in a row group of a scratch file."""


class TokenPairs:
    """Pairs of tokens and features with at least `least` rows, on their way through `folder`."""

    def __init__(self, folder: Path, least: int) -> None:
        self.least = least
        self._folder, self._files = folder, list[Path]()
        self._rows, self._listed, self._left_out = (np.zeros(0, np.int64) for _ in range(3))

    def count_rows(self, rows: I64) -> None:
        """Add the counted rows [V] of each token 0 .. V - 1."""
        self._rows = added(self._rows, rows)

    def add(self, pairs: pl.DataFrame, left_out: pl.DataFrame) -> None:
        """Add what `Profiler.token_pairs` gives for the next range of features."""
        self._listed = added(self._listed, np.bincount(pairs["token_id"].to_numpy()))
        counts = np.zeros(int(left_out["token_id"].max() or 0) + 1, np.int64)  # type: ignore[arg-type]
        counts[left_out["token_id"].to_numpy()] = left_out["left_out"].to_numpy()
        self._left_out = added(self._left_out, counts)
        if pairs.height:
            path = self._folder / f"pairs-{len(self._files):06d}.parquet"
            pairs.sort("token_id", "feature").write_parquet(
                path, compression="zstd", compression_level=1, row_group_size=_GROUP
            )
            self._files.append(path)

    def features(self) -> Iterator[pl.DataFrame]:
        """The table `token_features` in parts."""
        for run in runs_within(np.append(0, np.cumsum(self._listed)), RUN_PAIRS):
            if self._files and self._listed[run.start : run.stop].any():
                yield self._run(run.start, run.stop - 1)

    def _run(self, first: int, last: int) -> pl.DataFrame:
        inside = pl.col("token_id").is_between(first, last)
        pairs = pl.scan_parquet(self._files, glob=False).filter(inside).collect()
        rows = self._rows[pairs["token_id"].to_numpy()]
        pairs = pairs.with_columns(recall=pairs["n_active"] / pl.Series(rows)).select(*TOKEN_FEATURES)
        return pairs.sort("token_id", "n_active", "feature", descending=[False, True, False])

    def counts(self) -> pl.DataFrame:
        """The table `token_counts`."""
        tokens = np.flatnonzero(self._rows)
        nothing = np.zeros(len(self._rows), np.int64)
        columns = {
            "token_id": tokens,
            "rows": self._rows[tokens],
            "features": added(self._listed, nothing)[tokens],
            "left_out": added(self._left_out, nothing)[tokens],
            "least": np.full(len(tokens), self.least),
        }
        return pl.DataFrame(columns).cast(TOKEN_COUNTS)  # type: ignore[arg-type]


def added(some: I64, more: I64) -> I64:
    """The sum of two arrays, the shorter one with zeros at its end."""
    longer, shorter = (some, more) if len(some) >= len(more) else (more, some)
    total = longer.astype(np.int64)
    total[: len(shorter)] += shorter
    return total
