"""A control next to the learnt features, over the same rows: those of the first 10 of every 50 contexts.

Contexts are numbered over the lake, as in the GPT-2 notebook, which takes the first 10 of each batch of 50 on
its way through the corpus; which rows these are does not depend on batches and workers here. Of the learnt
features the stored activations count; the control's (`pipeline.saes.encoding.control`) are float32 and not
rounded. Rows that are counted with activations 0 (special_tokens: zero) are 0 in both.

States are keyed by `feature`, one state for the learnt features and one for the control; they merge as all
moments do. N rows, F features that fired, Z nonzeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl

from pipeline.statistics.features.moments import Moments, moments
from pipeline.statistics.features.statistic import every_feature
from pipeline.statistics.l0 import add_rows, l0_above
from schemas.tables.tables import CONTROL_FEATURES, CONTROL_L0, CONTROL_STATE, L0_THRESHOLDS
from schemas.values import Bool, ControlSums, Postings, SparseFeatures, TokenShard, Totals

EVERY, FIRST = 50, 10
THRESHOLDS = (0.0, 0.1, 0.2, 0.5, 2.0)
LEARNT, CONTROL = "learnt", "control"
OF = (CONTROL, LEARNT)

POWER_ROOM = 1e-3
"""What float32 may lose of a row's norm, relative, with much room."""


def in_control(tokens: TokenShard) -> Bool:
    """Which rows are in the control's contexts, bool [N]."""
    return tokens.context_of_row() % EVERY < FIRST


def learnt_state(postings: Postings) -> pl.DataFrame:
    """State (schema `CONTROL_STATE`) of stored activations in the control's contexts."""
    # reduceat refuses an empty array, and a shard may have no activation
    starts, values = postings.offsets[:-1], postings.values
    sums = moments(values.astype(np.float64), postings.offsets)
    high, low = (f.reduceat(values, starts) if len(starts) else values[:0] for f in (np.maximum, np.minimum))
    return _state(
        LEARNT,
        feature=postings.features,
        n_active=sums.n,
        mean=sums.mean,
        m2=sums.m2,
        max_activation=high,
        strongest_activation=np.where(high >= -low, high, low),
    )


def control_state(sums: ControlSums) -> pl.DataFrame:
    """State (schema `CONTROL_STATE`) of a control; m2 has lost what mean**2 / variance is large by."""
    fired = np.flatnonzero(sums.n_active)
    n, total = sums.n_active[fired], sums.total[fired]
    mean = total / n
    return _state(
        CONTROL,
        feature=fired,
        n_active=n,
        mean=mean,
        m2=np.maximum(sums.squares[fired] - total * mean, 0),
        max_activation=sums.largest[fired],
        strongest_activation=sums.largest[fired],  # a control is not negative
    )


def _state(of: str, **columns: object) -> pl.DataFrame:
    frame = pl.DataFrame(columns, schema={n: CONTROL_STATE[n] for n in columns})
    return frame.select(*(pl.lit(of).alias(n) if n == "of" else pl.col(n) for n in CONTROL_STATE))


def partial(learnt: pl.DataFrame, control: pl.DataFrame) -> pl.DataFrame:
    """What a shard keeps of both states, by feature and `of`; see `CONTROL_STATE` for what it leaves out."""
    both = pl.concat([control, learnt]).sort("feature", "of")
    signed = not both["strongest_activation"].equals(both["max_activation"])
    return both if signed else both.drop("strongest_activation")


def learnt_l0(features: SparseFeatures, counted_rows: int) -> pl.DataFrame:
    """Rows by how many |activations| are above each threshold (schema `CONTROL_L0`).

    `features` are those of the control's contexts alone, of which `counted_rows` are counted.
    """
    counts = l0_above(features.indptr, features.data, counted_rows, THRESHOLDS)
    return counts.select(pl.lit(LEARNT).alias("of"), *L0_THRESHOLDS).select(*CONTROL_L0)


def control_l0(sums: ControlSums, empty_rows: int) -> pl.DataFrame:
    """The same of a control; `empty_rows` are counted, but all their activations are 0."""
    counts = sums.l0.copy()
    counts[:, 0] += empty_rows
    place, l0 = np.nonzero(counts)
    columns = {
        "of": [CONTROL] * len(l0),
        "threshold": np.array(THRESHOLDS)[place],
        "l0": l0,
        "rows": counts[place, l0],
    }
    return pl.DataFrame(columns, schema=CONTROL_L0)


def combine_l0(counts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Adds frames of schema `CONTROL_L0`."""
    return add_rows(counts, CONTROL_L0)


def impossible(state: pl.DataFrame, l0: pl.DataFrame) -> str | None:
    """What cannot be true of a shard's control and its learnt features, in words.

    Each row of a control has the norm of its learnt one, or is 0 where nothing of the control is above 0: so
    the control's sum of squares is at most the learnt one.
    """
    if l0.is_empty():
        return None if state.is_empty() else "has activations, and no row"
    rows = l0.group_by("of", "threshold").agg(pl.col("rows").sum())["rows"]
    if rows.n_unique() > 1 or len(rows) != len(OF) * len(THRESHOLDS):
        return "does not count the rows that the learnt features count"
    of_control = state.filter(of=CONTROL)
    fired = l0.filter(of=CONTROL, threshold=0.0).select(pl.col("l0").cast(pl.Int64) * pl.col("rows"))
    if of_control["n_active"].sum() != fired["l0"].sum() or (of_control["n_active"] > rows[0]).any():
        return "counts other activations by feature than by row"
    squares = pl.col("m2") + pl.col("n_active") * pl.col("mean") ** 2
    power = {of: float(state.filter(of=of).select(squares).to_series().sum()) for of in OF}
    if not power[CONTROL] <= power[LEARNT] * (1 + POWER_ROOM):
        return "is stronger than the learnt features"
    return None


def combine(states: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Merge states of both kinds, those of earlier shards first; by `of`, then feature."""
    # where nothing is negative a shard leaves out the strongest: it is the largest
    whole = [
        state
        if "strongest_activation" in state.columns
        else state.with_columns(strongest_activation=pl.col("max_activation"))
        for state in states
    ]
    every = pl.concat([pl.DataFrame(schema=CONTROL_STATE), *whole])
    high, low = pl.col("strongest_activation").max(), pl.col("strongest_activation").min()
    largest = every.group_by("of", "feature").agg(
        pl.col("max_activation").max(),
        strongest_activation=pl.when(high >= -low).then(high).otherwise(low),
    )
    merged = [
        Moments().combine([_with_shape(state.filter(of=of)) for state in whole]).with_columns(of=pl.lit(of))
        for of in OF
    ]
    both = pl.concat(merged).join(largest, on=["of", "feature"], how="left", maintain_order="left")
    return both.select(*CONTROL_STATE)


def finalize(
    state: pl.DataFrame, counted_rows: int, features: range, control: str, architecture: str
) -> pl.DataFrame:
    """Rows of the table `control_features` (schema `CONTROL_FEATURES`) of some features; learnt first."""
    moved = state.with_columns(pl.col("feature") - features.start)
    totals, tables = Totals(counted_rows, counted_rows, 0, 0), []
    for of, rule in ((LEARNT, architecture), (CONTROL, "standard")):
        states = moved.filter(of=of).drop("of")
        table = Moments().finalize(_with_shape(states), totals, len(features))
        strongest = states.select("feature", "max_activation", "strongest_activation")
        largest = every_feature(strongest, len(features))
        about = {"of": of, "control": control, "architecture": rule, "counted_rows": counted_rows}
        tables.append(
            table.join(largest, on="feature", maintain_order="left").with_columns(
                pl.col("feature") + pl.lit(features.start, pl.UInt32),
                **{name: pl.lit(value, CONTROL_FEATURES[name]) for name, value in about.items()},
            )
        )
    return pl.concat(tables).select(*CONTROL_FEATURES)


def _with_shape(state: pl.DataFrame) -> pl.DataFrame:
    """With the columns that a state of `Moments` has and this one does not need."""
    return state.with_columns(m3=pl.lit(0.0), m4=pl.lit(0.0))
