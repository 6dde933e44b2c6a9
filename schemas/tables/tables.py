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


VOCABULARY: Schema = {"token_id": pl.Int32(), "text": pl.String(), "bytes": pl.Binary()}
"""What each token puts into a text: every id from 0 on. `text` is for display, with U+FFFD for a part of a
character; `bytes` are UTF-8 as they are, and may be such a part."""

WITHOUT_TOKEN_BYTES = 6
"""The last format version of lakes whose vocabulary has no `bytes`."""


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
    "strongest_activation": pl.Float32(),
}
"""A shard's `control.parquet`, by feature and `of` (control before learnt): over the rows of the control's
contexts in which it fires, how many there are, their mean, the sum of squared deviations from it, the
largest, and the one of largest |activation| with its sign. Features that never fire there are not listed.

The file has no `strongest_activation` where it is the largest throughout, as it is unless activations are
negative; files that were written before that column was there have none either."""

CONTROL_L0: Schema = {"of": pl.String(), "threshold": pl.Float64(), **ROW_COUNTS}
"""How many counted rows of the control's contexts have so many (`l0`) |activations| above the threshold;
`of` is control or learnt. A shard's `control_l0.parquet`, and the table."""

CONTROL_FEATURES: Schema = {
    "feature": pl.UInt32(),
    **dict.fromkeys(("of", "control", "architecture"), pl.String()),
    "counted_rows": pl.Int64(),
    "n_active": pl.Int64(),
    **dict.fromkeys(("frequency", "mean_all", "var_all", "std_all", "sigma_over_mu"), pl.Float64()),
    **dict.fromkeys(("mean_active", "var_active", "std_active"), pl.Float64()),
    "max_activation": pl.Float32(),
    "strongest_activation": pl.Float32(),
}
"""A row per feature 0 .. d_sae - 1 and `of`, learnt and control, over the control's contexts alone.

`control` names the control, `architecture` is the SAE's, and `standard` of the control, which is a ReLU.
The rest is as in the feature table; `strongest_activation` is that one of its `min_activation` and
`max_activation` that is larger without its sign (the maximum, where an older shard does not have it)."""

MANIFEST: Schema = {
    **dict.fromkeys(("shard", "state", "attempt"), pl.String()),
    **dict.fromkeys(("rows", "nnz", "bytes"), pl.Int64()),
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
the active rows, from the lowest activation, negative ones included, to the highest; `stats` estimates them
from histograms, and some 1 in 50 stands next to its tenth). `latentlake examples` makes the tenths exact, and
adds top_document (as top, but each document's strongest row alone) and random (activation 0: a counted row of
a context in which the feature never fires, rank by the order in which they were drawn)."""

OF_STATS = ("top", "quantile")
"""Kinds of examples that `stats` writes."""

NEIGHBOURS: Schema = {
    "feature": pl.UInt32(),
    "neighbour": pl.UInt32(),
    "by": pl.String(),
    "rank": pl.UInt16(),
    **dict.fromkeys(("n_both", "n_a", "n_b"), pl.Int64()),
    **dict.fromkeys(("jaccard", "npmi", "phi", "conditional"), pl.Float64()),
}
"""By feature, by `by` (jaccard, npmi, phi, conditional, in this order), by rank, 0 the highest value.

`n_both`, `n_a`, `n_b`: rows in which both are active, the feature is, the neighbour is; the measures are
those of `jobs.tables.pairs.association`, null where they are undefined."""

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
    **dict.fromkeys(("n_both", "n_a", "n_b"), pl.Int64()),
    "jaccard": pl.Float64(),
}
"""By feature of site A, the best `match`, a feature of site B, first: by cosine, or by Jaccard index where
cosines are not compared.

`assigned`: the pair is one of the optimal one-to-one assignment; `cosine`: of the decoder rows, null where
they cannot be compared or one has no direction; `n_both`, `n_a`, `n_b`: rows of the shards that both have
in which both are active, the feature is, the match is; `jaccard`: n_both / (n_a + n_b - n_both), null where
neither fires."""


def _compared(name: str) -> Schema:
    endings = ("a", "b", "difference", "log2_ratio", "se", "z", "p", "q")
    return {f"{name}_{ending}": pl.Float64() for ending in endings}


DIFF: Schema = {
    "feature": pl.UInt32(),
    **dict.fromkeys(("documents_a", "documents_b", "n_active_a", "n_active_b"), pl.Int64()),
    **_compared("frequency"),
    **_compared("mean_all"),
}
"""What `diff` writes: a row per feature 0 .. d_sae - 1 of two stores a and b.

`documents_*`: documents in which it fires; `n_active_*`: active rows. Of `frequency` and of `mean_all`: the
value in a and in b; `difference`: b - a; `log2_ratio`: log2(b / a), null where one is 0 or the signs differ;
`se`: the difference's standard error, clustered by document; `z`: difference / se; `p`: two-sided; `q`:
Benjamini and Hochberg's, over the features with a p. z, p and q are null where there is too little to tell
(`pipeline.statistics.documents.comparison`).
"""

PROFILE: Schema = {
    "feature": pl.UInt32(),
    **dict.fromkeys(("frequency_se", "frequency_low", "frequency_high"), pl.Float64()),
    **dict.fromkeys(("dead_upper", "dead_upper_rows"), pl.Float64()),
    "tokens": pl.UInt32(),
    "top_token": pl.Int32(),
    **dict.fromkeys(("top_token_share", "token_entropy_bits"), pl.Float64()),
    **dict.fromkeys(("position_entropy_bits", "first_positions_share"), pl.Float64()),
    "first_context": pl.UInt64(),
    "last_context": pl.UInt64(),
}
"""A row per feature 0 .. d_sae - 1; but for `tokens` what never fired has nulls from `tokens` on.

`frequency_se`: standard error of the frequency, clustered by document, null where it fires never or always;
`frequency_low`, `frequency_high`: 95 % (`pipeline.statistics.documents.intervals`). Of a feature that never
fired, else null: `dead_upper`, the frequency below which it is at 95 % by the rule of three over documents,
counted as so many of equal size: they are what is drawn. `dead_upper_rows`, the same over rows, would hold if
rows were independent: bursts make it far too small. `tokens`: distinct tokens it fires on; `top_token`: the
one it fires on most often (the lowest id of equals), `top_token_share`: its share of the active rows;
`token_entropy_bits`, `position_entropy_bits`: entropy of its active rows over token ids, over positions in
the context; `first_positions_share`: share of them at position 0 or 1; `first_context`, `last_context`: the
first and the last context of the lake that it fires in.
"""

TOKEN_FEATURES: Schema = {
    "token_id": pl.Int32(),
    "feature": pl.UInt32(),
    "n_active": pl.Int64(),
    **dict.fromkeys(("recall", "precision", "mean_active"), pl.Float64()),
}
"""A row per token and feature that fires in enough rows of it: by token_id, then n_active from the largest,
then feature.

`n_active`: counted rows of that token in which the feature fires; `recall`: their share of the token's
counted rows; `precision`: their share of the feature's active rows; `mean_active`: the mean activation over
them. Pairs with fewer rows than the `least` of TOKEN_COUNTS are not listed.
"""

TOKEN_COUNTS: Schema = {
    "token_id": pl.Int32(),
    **dict.fromkeys(("rows", "features", "left_out", "least"), pl.Int64()),
}
"""A row per token that is counted anywhere: its counted `rows`; the `features` that `token_features` lists
for it, each with at least `least` rows; and how many are `left_out`, which fire in fewer of its rows."""

LABELS: Schema = {
    "feature": pl.UInt32(),
    "label": pl.String(),
    "value": pl.String(),
    "rows": pl.Int64(),
    "n_active": pl.Int64(),
    **dict.fromkeys(("frequency", "mean_all", "difference", "z", "p", "q"), pl.Float64()),
}
"""A row per feature, label column and value of it with an active row there, or with a p.

Over the `rows` counted rows of documents with that value: `n_active` active ones, `frequency`, `mean_all`.
`difference`: this frequency minus that in documents with any other value; `z`, `p` (two-sided), clustered by
document, null where there are too few documents to tell (`pipeline.statistics.documents.comparison`); `q`:
Benjamini and Hochberg's over the features with a p for this value. Documents without a value are left out.
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

LABEL_TRENDS: Schema = {
    "feature": pl.UInt32(),
    "label": pl.String(),
    "documents": pl.Int64(),
    **dict.fromkeys(("slope", "se", "z", "p", "q"), pl.Float64()),
}
"""A row per numeric label column and feature that fires in a document with a value of it.

`documents`: those documents; `slope`: by how much the frequency of the line through all documents' changes
from one unit of the label to the next; `se`: its standard error, clustered by document; `z`: slope / se; `p`:
two-sided; `q`: Benjamini and Hochberg's over the features with a p for this label. z, p and q are null where
there are too few documents to tell (`pipeline.statistics.documents.trends`).
"""

L0_THRESHOLDS: Schema = {"threshold": pl.Float64(), "l0": pl.UInt32(), "rows": pl.Int64()}
"""How many counted rows have so many features with |activation| above the threshold."""

EXPLANATIONS: Schema = {
    "feature": pl.UInt32(),
    **dict.fromkeys(("text", "source", "origin", "method", "model"), pl.String()),
}
"""A row per feature and explanation by another tool, features ascending, each one's in the tool's order.

`source`: neuronpedia or delphi; `origin`: what that calls the SAE (gpt2-small/9-res-jb, layers.9); `method`
and `model`: by which method, and which model, the text was made, null where the tool does not say.
"""

TRUTH: Schema = {
    **dict.fromkeys(("feature", "true_feature", "nearest_true_feature", "place"), pl.UInt32()),
    "encoder_cosine": pl.Float32(),
    "decoder_cosine": pl.Float32(),
    "counted_rows": pl.Int64(),
    "n_active": pl.Int64(),
    **dict.fromkeys(("true_frequency", "frequency", "frequency_low", "frequency_high"), pl.Float64()),
    **dict.fromkeys(("true_mean", "expected_mean", "mean_active", "mean_low", "mean_high"), pl.Float64()),
    "n_drawn": pl.Int64(),
    "n_hits": pl.Int64(),
    "precision": pl.Float64(),
    "recall": pl.Float64(),
    "n_nearest_drawn": pl.Int64(),
    "n_nearest_hits": pl.Int64(),
}
"""A row per feature of the SAE, of a store of a known dictionary against its truth.

`true_feature`: the one assigned to it (null: none; then so is all about it), with the cosines of their
directions; `nearest_true_feature`: the one of largest |cosine| of decoder directions, by which `place` orders
the features literally. Of the assigned feature: `true_frequency` and `true_mean` (of the rows in which it
fires), in closed form; `frequency` and `mean_active` measured, with 95 % over rows. `expected_mean`: what the
encoder gives on average in the rows in which the true feature fires, null where the encoder is not linear.
`n_drawn`: rows in which the true feature was drawn, `n_hits` those in which both fire, precision n_hits /
n_active, recall n_hits / n_drawn; `n_nearest_…`: the same rows of `nearest_true_feature`. Null where what was
drawn cannot be drawn again.
"""

TRUTH_SUMMARY: Schema = {
    **dict.fromkeys(("counted_rows", "features", "true_features", "dead"), pl.Int64()),
    **dict.fromkeys(("l0", "true_l0", "expected_l0", "explained_variance", "shrinkage"), pl.Float64()),
    **dict.fromkeys(("mcc", "uniqueness", "precision", "recall", "f1", "accuracy"), pl.Float64()),
}
"""One row: an SAE as a whole, by the measures of sae-lens' `eval_sae_on_synthetic_data` (synthetic/evals.py).

`l0`: features active in a row, on average, `true_l0` true ones as drawn, `expected_l0` these in closed form;
`dead`: features that never fire. Of x, which the lake holds, and x' = activations @ W_dec + b_dec:
`explained_variance` 1 - SSE / SST about the mean over all rows, `shrinkage` the mean of |x'| / |x| (of rows
of |x| above 1e-6). `mcc`: the mean |cosine| of decoder directions assigned one to one, of min(features,
true_features) pairs; `uniqueness`: true features that are nearest to some feature, per feature. `precision`,
`recall`, `f1`, `accuracy`: each feature as a detector of its nearest true one, averaged over all features, 0
where one has none. Null where the reconstruction is another, or what was drawn cannot be drawn again.
"""

TRUTH_PAIRS: Schema = {
    "kind": pl.String(),
    **dict.fromkeys(("true_a", "true_b", "a", "b"), pl.UInt32()),
    "counted_rows": pl.Int64(),
    **dict.fromkeys(("n_a", "n_b", "n_both"), pl.Int64()),
    **dict.fromkeys(("true_frequency", "frequency", "frequency_low", "frequency_high"), pl.Float64()),
    **dict.fromkeys(("true_phi", "phi", "true_conditional", "conditional"), pl.Float64()),
    **{f"rank_{name}": pl.UInt16() for name in ("jaccard", "npmi", "phi", "conditional")},
}
"""A row per pair of true features that know each other, and of features `a`, `b` of the SAE assigned to them.

`kind`: correlated, parent (a fires only where b does), ancestor (the same, over others) or exclusive.
`frequency`: of rows in which both are active, with 95 %, `true_frequency` in closed form; `phi`: correlation
of firing; `conditional`: n_both / n_a; `rank_…`: of b among the neighbours of a (table `neighbours`), null
where it is not among them, or the table is not there.
"""

TRUTH_COSINES: Schema = {
    **dict.fromkeys(("place", "feature", "true_feature"), pl.UInt32()),
    "encoder": pl.Float32(),
    "decoder": pl.Float32(),
}
"""Cosines of encoder and decoder directions with true ones: the first features in the literal order (that of
the best site), `place` by place, each with the first true features. What the heat map shows."""
