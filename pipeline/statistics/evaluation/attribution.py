"""Attributions of prompts, summed by label value and feature; which features they select; ablation's effects.

A prompt without a value of a label is left out of that label. Means are over all prompts of a value, those in
which a feature is not active with 0. Intervals are Student's, over prompts: they are what is drawn. Sums are
float64 in the order of the prompts, so equal for any number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from schemas.tables.attribution import ATTRIBUTION_SELECTION, ATTRIBUTIONS
from schemas.tables.tables import Schema
from schemas.values import F64, I64

LEVEL = 0.95
GROUP = ("label", "value", "feature")
EVERY_PROMPT = ("scores", "all")
"""Label and value that all prompts have for an external table of scores that names none."""

SUMS: Schema = {
    "label": pl.String(),
    "value": pl.String(),
    "feature": pl.UInt32(),
    "prompts": pl.Int64(),
    **{name: pl.Float64() for name in ("sum", "squares", "sum2", "squares2")},
}
"""By label, value and feature: in how many prompts it is active (of a null feature: how many there are), and
of those prompts' numbers, of the gap and of its square, the sums and the sums of squares."""


def partial(
    values: pl.DataFrame, context: I64, feature: I64, numbers: tuple[F64, F64], d_sae: int
) -> pl.DataFrame:
    """SUMS of some prompts: `values` has a row each, a column for each label.

    Entries float64 [Z] belong to a prompt and a feature, int64 [Z]; those of one pair are added first, as of
    several vectors of one prompt. Of a feature named twice for a prompt it is active once.
    """
    pair, place = np.unique(context * d_sae + feature, return_inverse=True)
    each = [np.bincount(place, number, len(pair)).astype(np.float64) for number in numbers]
    context, feature = np.divmod(pair, d_sae)
    entries = pl.DataFrame({"feature": feature.astype(np.uint32), "one": each[0], "two": each[1]})
    parts = [pl.DataFrame(schema=SUMS)]
    for label in values.columns:
        label_values = values[label].cast(pl.String)
        counts = label_values.drop_nulls().value_counts(sort=False).rows()
        # a null feature has how many prompts there are, those in which nothing is active included
        there = [(label, value, None, n, 0.0, 0.0, 0.0, 0.0) for value, n in sorted(counts)]
        parts.append(pl.DataFrame(there, schema=SUMS, orient="row"))
        # each entry is of another prompt or feature, so it is the sum of one
        known = entries.with_columns(value=label_values.gather(context)).drop_nulls("value")
        one, two = pl.col("one"), pl.col("two")
        sums = {"sum": one, "squares": one * one, "sum2": two, "squares2": two * two}
        first = pl.lit(label).alias("label"), "value", "feature", pl.lit(1, pl.Int64).alias("prompts")
        parts.append(combine([known.select(*first, **sums)]))
    return pl.concat(parts)


def combine(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """SUMS of all prompts, by label, value and feature; added in the order of the parts."""
    rows = pl.concat([pl.DataFrame(schema=SUMS), *parts])
    if rows.is_empty():
        return rows
    rows = rows.sort(GROUP, maintain_order=True)
    # reduceat adds in the order of the rows, which group_by does not promise
    keys = rows.select(pl.struct(GROUP).rle_id()).to_series().to_numpy()
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    added = {name: np.add.reduceat(rows[name].to_numpy(), first) for name in list(SUMS)[3:]}
    return rows[first].select(GROUP).with_columns(**{n: pl.Series(v) for n, v in added.items()})


def finalize(sums: pl.DataFrame) -> pl.DataFrame:
    """ATTRIBUTIONS of SUMS."""
    n = pl.col("prompts")
    features = sums.filter(pl.col("feature").is_not_null()).rename({"prompts": "active"})
    features = features.join(_totals(sums), on=["label", "value"], how="left", maintain_order="left")
    return features.select(
        *GROUP,
        "prompts",
        "active",
        ig=pl.col("sum") / n,
        ig_se=_se("sum", "squares"),
        ig2=pl.col("sum2") / n,
        ig2_se=_se("sum2", "squares2"),
    ).cast(pl.Schema(ATTRIBUTIONS))


def _totals(sums: pl.DataFrame) -> pl.DataFrame:
    """All `prompts` of each value."""
    return sums.filter(pl.col("feature").is_null()).select("label", "value", "prompts")


def _se(total: str, squares: str) -> pl.Expr:
    """Standard error of a mean over `prompts`; null for one."""
    n = pl.col("prompts")
    variance = ((pl.col(squares) - pl.col(total) ** 2 / n) / (n - 1)).clip(lower_bound=0)
    return pl.when(n > 1).then((variance / n).sqrt())


def select(scores: pl.DataFrame, by: str, k: int) -> pl.DataFrame:
    """ATTRIBUTION_SELECTION without ablation, of `label`, `value`, `feature` and the score in column `by`.

    The k features of largest |score| of each value, equal ones by number; then of every value all features
    that some value has.
    """
    scored = scores.filter(pl.col(by).is_not_null() & (pl.col(by) != 0))
    order = scored.sort("label", "value", pl.col(by).abs(), "feature", descending=[False, False, True, False])
    first = order.with_columns(rank=pl.int_range(pl.len(), dtype=pl.Int64).over("label", "value"))
    first = first.filter(pl.col("rank") < k).select(*GROUP, "rank")
    union = first.select(pl.col("feature").unique().sort())
    values = scores.select("label", "value", "prompts").unique(maintain_order=True).sort("label", "value")
    table = values.join(union, how="cross").join(scores.select(*GROUP, "active", by), on=GROUP, how="left")
    table = table.join(first, on=GROUP, how="left").sort(GROUP)
    empty = {name: pl.lit(None, dtype=dtype) for name, dtype in list(ATTRIBUTION_SELECTION.items())[-4:]}
    filled = table.with_columns(
        score=pl.col(by).fill_null(0.0), active=pl.col("active").fill_null(0), **empty
    )
    return filled.select(*ATTRIBUTION_SELECTION).cast(pl.Schema(ATTRIBUTION_SELECTION))


def with_effects(selection: pl.DataFrame, sums: pl.DataFrame, *, squared: bool) -> pl.DataFrame:
    """The selection with the effects that ablation has, from SUMS of them.

    A feature that is active in no prompt of a value has no effect there. `prompts` and `active` of what was
    ablated are those counted now: an external table of scores knows neither.
    """
    from scipy import stats

    names = ("sum2", "squares2") if squared else ("sum", "squares")
    ablated = selection.filter(pl.col("rank").is_not_null()).select(*GROUP)
    features = sums.filter(pl.col("feature").is_not_null()).rename({"prompts": "active"})
    effects = ablated.join(_totals(sums), on=["label", "value"], how="left", maintain_order="left")
    effects = effects.join(features, on=GROUP, how="left", maintain_order="left")
    effects = effects.with_columns(pl.col("active", *names).fill_null(0))
    effects = effects.select(
        *GROUP, "prompts", "active", effect=pl.col(names[0]) / pl.col("prompts"), se=_se(*names)
    )
    n, mean, se = (effects[name].to_numpy().astype(np.float64) for name in ("prompts", "effect", "se"))
    half = se * stats.t.ppf((1 + LEVEL) / 2, np.maximum(n - 1, 1))
    ends = {"effect_low": mean - half, "effect_high": mean + half}
    effects = effects.with_columns(
        **{name: pl.Series(values).fill_nan(None) for name, values in ends.items()}
    )
    selected = selection.select(*GROUP, "score", "rank", "prompts", "active")
    table = selected.join(effects, on=GROUP, how="left", maintain_order="left", suffix="_now")
    # an effect holds where its interval does not reach 0 and it has the sign that the score predicted
    same = pl.col("effect").sign() == pl.col("score").sign()
    beyond = (pl.col("effect_low") > 0) | (pl.col("effect_high") < 0)
    counted = {name: pl.coalesce(f"{name}_now", name) for name in ("prompts", "active")}
    return table.with_columns(**counted, holds=same & beyond).select(*ATTRIBUTION_SELECTION)
