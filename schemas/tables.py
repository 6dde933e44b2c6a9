"""Columns and Polars dtypes of every table in a store."""

from __future__ import annotations

import polars as pl

from schemas.records import Inputs

Schema = dict[str, pl.DataType]

LABEL_DTYPES: dict[str, pl.DataType] = {
    "String": pl.String(),
    "Int64": pl.Int64(),
    "Float64": pl.Float64(),
    "Boolean": pl.Boolean(),
}


_INPUTS = {"uint8": pl.UInt8(), "float32": pl.Float32()}


def tokens_schema(label_columns: dict[str, str], inputs: Inputs | None = None) -> Schema:
    """One row per context of a shard.

    `row_offset` is the context's first row counted from the shard's first row (add the shard's `row_start`);
    a label column holds the value that all segments of the context share, null where they differ. `inputs`
    are the vectors of its rows, where the corpus holds some.
    """
    labels: Schema = {name: LABEL_DTYPES[dtype] for name, dtype in label_columns.items()}
    segment = {"document": pl.UInt64(), "start": pl.UInt32(), "offset": pl.UInt32(), **labels}
    return {
        "row_offset": pl.UInt64(),
        "token_ids": pl.List(pl.Int32()),
        "segments": pl.List(pl.Struct(segment)),
        "counted": pl.List(pl.Boolean()),
        **({} if inputs is None else {"inputs": pl.List(pl.Array(_INPUTS[inputs.dtype], inputs.width))}),
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
the active rows, from the lowest activation, negative ones included, to the highest). `latentlake examples`
adds top_document (as top, but each document's strongest row alone) and random (activation 0: a counted row of
a context in which the feature never fires, rank by the order in which they were drawn)."""

OF_STATS = ("top", "quantile")
"""Kinds of examples that `stats` writes."""

NEIGHBOURS: Schema = {
    "feature": pl.UInt32(),
    "neighbour": pl.UInt32(),
    "by": pl.String(),
    "rank": pl.UInt16(),
    "n_both": pl.Int64(),
    "n_a": pl.Int64(),
    "n_b": pl.Int64(),
    "jaccard": pl.Float64(),
    "npmi": pl.Float64(),
    "phi": pl.Float64(),
    "conditional": pl.Float64(),
}
"""By feature, by `by` (jaccard, npmi, phi, conditional, in this order), by rank, 0 the highest value.

`n_both`, `n_a`, `n_b`: rows in which both are active, the feature is, the neighbour is; the measures are
those of `jobs.association`, null where they are undefined."""

DECODER_NEIGHBOURS: Schema = {
    "feature": pl.UInt32(),
    "neighbour": pl.UInt32(),
    "rank": pl.UInt16(),
    "cosine": pl.Float32(),
}
"""By feature, by rank; `cosine` is that of the decoder rows."""

MATCHES: Schema = {
    "feature": pl.UInt32(),
    "match": pl.UInt32(),
    "assigned": pl.Boolean(),
    "cosine": pl.Float32(),
    "n_both": pl.Int64(),
    "n_a": pl.Int64(),
    "n_b": pl.Int64(),
    "jaccard": pl.Float64(),
}
"""By feature of site A, the best `match`, a feature of site B, first: by cosine, or by Jaccard index where
cosines are not compared.

`assigned`: the pair is one of the optimal one-to-one assignment; `cosine`: of the decoder rows, null where
they can not be compared or one has no direction; `n_both`, `n_a`, `n_b`: rows of the shards that both have
in which both are active, the feature is, the match is; `jaccard`: n_both / (n_a + n_b - n_both), null where
neither fires."""


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

PROFILE: Schema = {
    "feature": pl.UInt32(),
    "frequency_se": pl.Float64(),
    "frequency_low": pl.Float64(),
    "frequency_high": pl.Float64(),
    "dead_upper": pl.Float64(),
    "dead_upper_rows": pl.Float64(),
    "tokens": pl.UInt32(),
    "top_token": pl.Int32(),
    "top_token_share": pl.Float64(),
    "token_entropy_bits": pl.Float64(),
    "position_entropy_bits": pl.Float64(),
    "first_positions_share": pl.Float64(),
    "first_context": pl.UInt64(),
    "last_context": pl.UInt64(),
}
"""A row per feature 0 .. d_sae - 1; but for `tokens` what never fired has nulls from `tokens` on.

`frequency_se`: standard error of the frequency, clustered by document, null where it fires never or always;
`frequency_low`, `frequency_high`: 95 % (`pipeline.statistics.intervals`). Of a feature that never fired, else
null: `dead_upper`, the frequency below which it is at 95 % by the rule of three over documents, counted as so
many of equal size: they are what is drawn. `dead_upper_rows`, the same over rows, would hold if rows were
independent: bursts make it far too small. `tokens`: distinct tokens it fires on; `top_token`: the one it
fires on most often (the lowest id of equals), `top_token_share`: its share of the active rows;
`token_entropy_bits`, `position_entropy_bits`: entropy of its active rows over token ids, over positions in
the context; `first_positions_share`: share of them at position 0 or 1; `first_context`, `last_context`: the
first and the last context of the lake that it fires in.
"""

LABELS: Schema = {
    "feature": pl.UInt32(),
    "label": pl.String(),
    "value": pl.String(),
    "rows": pl.Int64(),
    "n_active": pl.Int64(),
    "frequency": pl.Float64(),
    "mean_all": pl.Float64(),
    "difference": pl.Float64(),
    "z": pl.Float64(),
    "p": pl.Float64(),
    "q": pl.Float64(),
}
"""A row per feature, label column and value of it with an active row there, or with a p.

Over the `rows` counted rows of documents with that value: `n_active` active ones, `frequency`, `mean_all`.
`difference`: this frequency minus that in documents with any other value; `z`, `p` (two-sided), clustered by
document, null where there are too few documents to tell (`pipeline.statistics.comparison`); `q`: Benjamini
and Hochberg's over the features with a p for this value. Documents without a value are left out.
"""

LABEL_VALUES: Schema = {
    "label": pl.String(),
    "value": pl.String(),
    "documents": pl.Int64(),
    "rows": pl.Int64(),
    "compared": pl.Boolean(),
}
"""Every label column's values (null: none), with the documents that have a counted row, and these rows.

Where a column has very many values, those of fewest rows are not `compared`: `labels` has no rows of them.
"""

L0_THRESHOLDS: Schema = {"threshold": pl.Float64(), "l0": pl.UInt32(), "rows": pl.Int64()}
"""How many counted rows have so many features with |activation| above the threshold."""
