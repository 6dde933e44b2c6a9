"""The order of features by a column, those with few active rows last."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import polars as pl

from pipeline.store import FeatureStore
from schemas.errors import InputError
from schemas.run.file import Rank
from schemas.tables.tables import PROFILE, Schema

SUPPORT = Rank.model_validate({}).support

RANKINGS: Schema = {
    "by": pl.String(),
    "rank": pl.UInt32(),
    "feature": pl.UInt32(),
    "value": pl.Float64(),
    "rank_low": pl.UInt32(),
    "rank_high": pl.UInt32(),
}
RANKING_SUMMARY: Schema = {"by": pl.String(), "ranked": pl.UInt32(), "without_value": pl.UInt32()}


def rankable(store: FeatureStore, site: str, by: str) -> pl.DataFrame:
    """`feature`, `n_active` and the column `by` of the feature table or of `profile`.

    InputError names the nearest column.
    """
    of_features = store.scan_features(site)
    columns = of_features.collect_schema()
    column_of(columns, by)
    if by in columns:
        return of_features.select(*dict.fromkeys(["feature", "n_active", by])).collect()
    profile = store.scan_table(site, "profile").select("feature", by)
    return of_features.select("feature", "n_active").join(profile, on="feature", how="left").collect()


def ranking(
    features: pl.DataFrame, by: str, *, descending: bool = True, support: int = SUPPORT
) -> pl.DataFrame:
    """Features that have a value of `by`, in order (schema RANKINGS, no interval); equal ones by feature.

    Those with fewer than `support` active rows (column `n_active`) come last.
    """
    value = pl.col(column_of(features.schema, by)).cast(pl.Float64).fill_nan(None)
    rare = pl.col("n_active") < support if support else pl.lit(value=False)
    return (
        features.select("feature", value=value, rare=rare)
        .drop_nulls("value")
        .sort("rare", "value", "feature", descending=[False, descending, False])
        .with_row_index("rank")
        .select(by=pl.lit(by), rank="rank", feature="feature", value="value", rank_low=None, rank_high=None)
        .cast(RANKINGS)  # type: ignore[arg-type]
    )


def column_of(features: Mapping[str, pl.DataType], by: str) -> str:
    """The column's name, when it is a column of numbers, of the feature table or of `profile`."""
    columns = PROFILE | dict(features)
    numbers = [name for name, dtype in columns.items() if dtype.is_numeric()]
    if by in numbers:
        return by
    near = difflib.get_close_matches(by, numbers, n=1, cutoff=0.3)
    remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(numbers)}"
    what = "holds no numbers" if by in columns else "is not a column of the feature table or `profile`"
    raise InputError(f"cannot rank by {by!r}, which {what}; {remedy}")
