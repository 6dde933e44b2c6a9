"""Tables of what features add to the gap between two answers of prompts, by label."""

from __future__ import annotations

import polars as pl

from schemas.tables.tables import Schema

ATTRIBUTIONS: Schema = {
    "label": pl.String(),
    "value": pl.String(),
    "feature": pl.UInt32(),
    "prompts": pl.Int64(),
    "active": pl.Int64(),
    **{name: pl.Float64() for name in ("ig", "ig_se", "ig2", "ig2_se")},
}
"""A row per label, value and feature that is active in one of its prompts.

`prompts`: of the value; `active`: those in which the feature fires; `ig`: mean over the prompts of what the
feature adds to the gap p(answer) - p(other), `ig2`: to its square
(`pipeline.evaluation.integrated_gradients`); their standard errors, null for one prompt.
"""

ATTRIBUTION_PROMPTS: Schema = {
    "document": pl.UInt64(),
    "context": pl.UInt64(),
    **{name: pl.Float64() for name in ("gap", "baseline", "ig_sum", "ig2_sum")},
    "nodes": pl.Int64(),
    "complete": pl.Boolean(),
}
"""A row per prompt: its gap, the gap with no latent active, the sums of its attributions of the gap and of
its square, the nodes of their quadrature, and whether both sums are what they should be, to the tolerance."""

ATTRIBUTION_SELECTION: Schema = {
    "label": pl.String(),
    "value": pl.String(),
    "feature": pl.UInt32(),
    "score": pl.Float64(),
    **dict.fromkeys(("rank", "prompts", "active"), pl.Int64()),
    **{name: pl.Float64() for name in ("effect", "effect_low", "effect_high")},
    "holds": pl.Boolean(),
}
"""A row per value and feature of the union of every value's first k features.

`score`: `ig2` or `ig` of `attributions`, or that of an external table; 0 where there is none. `rank`: from 0
by |score| among the value's features, null where not among its first k. Of those among them, where they were
ablated: `effect`, the mean over the value's prompts of the gap (of its square, where the score is `ig2`)
minus that with the latent at 0, and its 95 % interval over prompts; `holds`: the interval leaves 0 out and
the effect has the sign of the score. Not corrected for the number of features.
"""
