"""Columns and Polars dtypes of every table in a store."""

from __future__ import annotations

import polars as pl

Schema = dict[str, pl.DataType]

LABEL_DTYPES: dict[str, pl.DataType] = {
    "String": pl.String(),
    "Int64": pl.Int64(),
    "Float64": pl.Float64(),
    "Boolean": pl.Boolean(),
}


def tokens_schema(label_columns: dict[str, str]) -> Schema:
    """One row per context of a shard.

    `row_offset` is the context's first row counted from the shard's first row (add the shard's `row_start`);
    a label column holds the value that all segments of the context share, null where they differ.
    """
    labels: Schema = {name: LABEL_DTYPES[dtype] for name, dtype in label_columns.items()}
    segment = {"document": pl.UInt64(), "start": pl.UInt32(), "offset": pl.UInt32(), **labels}
    return {
        "row_offset": pl.UInt64(),
        "token_ids": pl.List(pl.Int32()),
        "segments": pl.List(pl.Struct(segment)),
        "counted": pl.List(pl.Boolean()),
        **labels,
    }


VOCABULARY: Schema = {"token_id": pl.Int32(), "text": pl.String()}
"""What each token puts into a text, for display: every id from 0 on."""


def postings_schema(activation_dtype: str) -> Schema:
    """Feature-major activations, sorted by (feature, row)."""
    value = pl.Float16() if activation_dtype == "float16" else pl.Float32()
    return {"feature": pl.UInt32(), "row": pl.UInt64(), "activation": value}


ROW_COUNTS: Schema = {"l0": pl.UInt32(), "rows": pl.Int64()}
"""How many counted rows have so many active features."""

CONTROL_STATE: Schema = {
    "feature": pl.UInt32(),
    "of": pl.String(),
    "n_active": pl.Int64(),
    "mean": pl.Float64(),
    "m2": pl.Float64(),
    "max_activation": pl.Float32(),
}
"""A shard's `control.parquet`, by feature and `of` (control before learnt): over the rows of the control's
contexts in which it fires, how many there are, their mean, the sum of squared deviations from it, the
largest. Features that never fire there are not listed."""

CONTROL_L0: Schema = {"of": pl.String(), "threshold": pl.Float64(), **ROW_COUNTS}
"""How many counted rows of the control's contexts have so many (`l0`) |activations| above the threshold;
`of` is control or learnt. A shard's `control_l0.parquet`, and the table."""

CONTROL_FEATURES: Schema = {
    "feature": pl.UInt32(),
    "of": pl.String(),
    "control": pl.String(),
    "architecture": pl.String(),
    "counted_rows": pl.Int64(),
    "n_active": pl.Int64(),
    **dict.fromkeys(("frequency", "mean_all", "var_all", "std_all", "sigma_over_mu"), pl.Float64()),
    **dict.fromkeys(("mean_active", "var_active", "std_active"), pl.Float64()),
    "max_activation": pl.Float32(),
}
"""A row per feature 0 .. d_sae - 1 and `of`, learnt and control, over the control's contexts alone.

`control` names the control, `architecture` is the SAE's, and `standard` of the control, which is a ReLU.
The rest is as in the feature table."""

MANIFEST: Schema = {
    "shard": pl.String(),
    "state": pl.String(),
    "attempt": pl.String(),
    "rows": pl.Int64(),
    "nnz": pl.Int64(),
    "bytes": pl.Int64(),
    "seconds": pl.Float64(),
    "error": pl.String(),
}

EXAMPLES: Schema = {
    "feature": pl.UInt32(),
    "kind": pl.String(),
    "interval": pl.UInt8(),
    "rank": pl.UInt16(),
    "row": pl.UInt64(),
    "activation": pl.Float32(),
}
"""`kind` is top (interval 0, rank 0 has the largest |activation|) or quantile (interval 0 to 9: tenths of
the active rows, from the lowest activation, negative ones included, to the highest)."""


def _compared(name: str) -> Schema:
    endings = ("a", "b", "difference", "log2_ratio", "se", "z", "p", "q")
    return {f"{name}_{ending}": pl.Float64() for ending in endings}


DIFF: Schema = {
    "feature": pl.UInt32(),
    "documents_a": pl.Int64(),
    "documents_b": pl.Int64(),
    "n_active_a": pl.Int64(),
    "n_active_b": pl.Int64(),
    **_compared("frequency"),
    **_compared("mean_all"),
}
"""What `diff` writes: a row per feature 0 .. d_sae - 1 of two stores a and b.

`documents_*`: documents in which it fires; `n_active_*`: active rows. Of `frequency` and of `mean_all`: the
value in a and in b; `difference`: b - a; `log2_ratio`: log2(b / a), null where one is 0 or the signs differ;
`se`: the difference's standard error, clustered by document; `z`: difference / se; `p`: two-sided; `q`:
Benjamini and Hochberg's, over the features with a p. z, p and q are null where there is too little to tell
(`pipeline.statistics.comparison`).
"""
