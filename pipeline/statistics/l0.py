"""L0: how many features are active in a counted row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from schemas.tables.tables import L0_THRESHOLDS, ROW_COUNTS, Schema
from schemas.values import F32, I64, Bool

PERCENTS = (0, 1, 10, 25, 50, 75, 90, 99, 100)

SUMMARY: Schema = {
    "counted_rows": pl.Int64(),
    "nnz": pl.Int64(),
    "mean": pl.Float64(),
    "var": pl.Float64(),
    **{f"q{percent:02d}": pl.Int64() for percent in PERCENTS},
}


def l0_counts(indptr: I64, counted: Bool) -> pl.DataFrame:
    """How many counted rows have each L0 (schema `ROW_COUNTS`, ascending, no empty entry).

    `indptr` int64 [N + 1] is that of the CSR, `counted` bool [N].
    """
    rows = np.bincount(np.diff(indptr)[counted])
    l0 = np.flatnonzero(rows)
    return pl.DataFrame({"l0": l0, "rows": rows[l0]}, schema=ROW_COUNTS)


def l0_above(indptr: I64, values: F32, counted_rows: int, thresholds: Sequence[float]) -> pl.DataFrame:
    """How many counted rows have so many |values| above each threshold (schema `L0_THRESHOLDS`).

    CSR `indptr` int64 [N + 1] and `values` float32 [Z] of rows of which `counted_rows` are counted, the
    others being empty. A threshold is compared as float64.
    """
    frames = [pl.DataFrame(schema=L0_THRESHOLDS)]
    size = np.abs(values)
    for threshold in thresholds:
        above = np.append(0, np.cumsum(size > np.float32(at_most(threshold)), dtype=np.int64))
        rows = np.bincount(np.diff(above[indptr]), minlength=1)
        # empty rows that are not counted look like counted rows without an activation
        rows[0] -= len(indptr) - 1 - counted_rows
        l0 = np.flatnonzero(rows)
        columns = {"threshold": np.full(len(l0), threshold, np.float64), "l0": l0, "rows": rows[l0]}
        frames.append(pl.DataFrame(columns, schema=L0_THRESHOLDS))
    return pl.concat(frames)


def at_most(threshold: float) -> float:
    """The largest float32 that is not above: x > it is x > threshold for every float32 x."""
    nearest = np.float32(threshold)
    return float(nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-np.inf)))


def combine_counts(counts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Adds the counts of frames of `l0_counts`."""
    return add_rows(counts, ROW_COUNTS)


def add_rows(counts: Iterable[pl.DataFrame], schema: Schema) -> pl.DataFrame:
    """The column `rows` of frames of this schema, added by the other columns; sorted by these."""
    keys = [name for name in schema if name != "rows"]
    every = pl.concat([pl.DataFrame(schema=schema), *counts])
    return every.group_by(keys).agg(pl.col("rows").sum()).sort(keys)


def l0_summary(counts: pl.DataFrame) -> pl.DataFrame:
    """One row (schema `SUMMARY`) of exact figures: mean, variance (ddof 0), quantiles (NumPy's inverted_cdf).

    q00 is the smallest L0 and q100 the largest; all but the counts are null over no counted row.
    """
    l0, rows = (counts[name].to_numpy().astype(np.int64) for name in ROW_COUNTS)
    n, nnz = int(rows.sum()), int(l0 @ rows)
    figures: dict[str, Any] = {"counted_rows": n, "nnz": nnz}
    if n:
        figures |= {"mean": nnz / n, "var": float(rows @ (l0 - nnz / n) ** 2) / n}
        cumulative = np.cumsum(rows)
        for percent in PERCENTS:
            rank = max(1, -(n * -percent // 100))  # in integers: float64 misses it beyond 2**50
            figures[f"q{percent:02d}"] = int(l0[np.searchsorted(cumulative, rank)])
    return pl.DataFrame([figures], schema=SUMMARY)
