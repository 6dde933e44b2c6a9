"""What a site's fidelity is computed from: totals of documents, and the measures that are ratios of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from pipeline.statistics.documents.ratios import Moments, ratio
from schemas.tables.tables import Schema

PREDICTED = ("predictions", "clean", "patched", "zero", "mean", "kl")
MEASURED = ("rows", "sse", "sst", "cosine", "active")
LITERAL = ("literal_predictions", "literal_clean", "literal_patched", "literal_zero")
QUANTITIES = (*PREDICTED, *MEASURED, *LITERAL)
"""Totals of a document. Over its predictions: how many, and nats of loss, clean and with each stand-in, and
of KL(clean || patched). Over its measured rows: how many, squared errors of the reconstruction, squared
deviations of the target from its mean, cosines of both, active features. LITERAL are 0 but under the policy
zero_first: those of the notebook that it comes from, over the predictions at all counted rows. All counted
rows are replaced there, position 0 too, whose features are set to 0: it becomes what nothing decodes to."""

FIDELITY_SHARDS: Schema = {
    "shard": pl.String(),
    "made_from": pl.String(),
    "documents": pl.Int64(),
    **dict.fromkeys(QUANTITIES, pl.Float64()),
    "products": pl.List(pl.Float64()),
}
"""Exact sums over (a sample of) a shard: documents with a measured row, the sum of each quantity over them
(QUANTITIES), and `products` [m * m], the sum of the products of every two."""

FIDELITY: Schema = {
    "measure": pl.String(),
    **dict.fromkeys(("value", "se", "low", "high"), pl.Float64()),
    "tokens": pl.Int64(),
    "documents": pl.Int64(),
}
"""`se`, `low`, `high`: standard error and 95 % interval, clustered by document; `tokens`: predictions or rows
that the measure is over. Losses and KL in nats; mse of an element; l0 in features. Null: not defined (zeros
that do no harm leave nothing to recover) or not known (one document); `reasons` says which. Under zero_first
there are also LITERAL_MEASURES, the notebook's; the others leave position 0 as it is and out of all means."""

MEASURES = {
    "clean_loss": ({"clean": 1}, {"predictions": 1}),
    "patched_loss": ({"patched": 1}, {"predictions": 1}),
    "zero_loss": ({"zero": 1}, {"predictions": 1}),
    "mean_loss": ({"mean": 1}, {"predictions": 1}),
    "recovered_share": ({"zero": 1, "patched": -1}, {"zero": 1, "clean": -1}),
    "recovered_share_of_mean": ({"mean": 1, "patched": -1}, {"mean": 1, "clean": -1}),
    "kl": ({"kl": 1}, {"predictions": 1}),
    "explained_variance": ({"sst": 1, "sse": -1}, {"sst": 1}),
    "mse": ({"sse": 1}, {"rows": 1}),
    "cosine": ({"cosine": 1}, {"rows": 1}),
    "l0": ({"active": 1}, {"rows": 1}),
}
"""Each measure as weights of the sums above and below the line."""

LITERAL_MEASURES = {
    "literal_clean_loss": ({"literal_clean": 1}, {"literal_predictions": 1}),
    "literal_patched_loss": ({"literal_patched": 1}, {"literal_predictions": 1}),
    "literal_zero_loss": ({"literal_zero": 1}, {"literal_predictions": 1}),
    "literal_recovered_share": (
        {"literal_zero": 1, "literal_patched": -1},
        {"literal_zero": 1, "literal_clean": -1},
    ),
}

_HARM = {
    "recovered_share": ("zeros", "zero_loss", "clean_loss"),
    "recovered_share_of_mean": ("the mean", "mean_loss", "clean_loss"),
    "literal_recovered_share": ("zeros", "literal_zero_loss", "literal_clean_loss"),
}
"""Share -> what is put in, and the losses between which it lies."""


def row_of(moments: Moments) -> dict[str, Any]:
    """A row of FIDELITY_SHARDS but for the shard and what it was made from."""
    sums = dict(zip(QUANTITIES, moments.sums.tolist(), strict=True))
    return {"documents": moments.documents, **sums, "products": moments.products.ravel().tolist()}


def summary(shards: pl.DataFrame, width: int) -> pl.DataFrame:
    """The table FIDELITY from the sums of shards, added in their order; `width` is that of the target."""
    m = len(QUANTITIES)
    moments = Moments.none(m)
    for row in shards.iter_rows(named=True):
        sums = np.array([row[name] for name in QUANTITIES])
        moments = moments.plus(Moments(row["documents"], sums, np.array(row["products"]).reshape(m, m)))
    is_literal = moments.sums[QUANTITIES.index("literal_predictions")] > 0
    lines = [_line(name, moments, width) for name in (*MEASURES, *(LITERAL_MEASURES if is_literal else ()))]
    return pl.DataFrame(lines, schema=FIDELITY, orient="row").fill_nan(None)


def _line(name: str, moments: Moments, width: int) -> tuple[Any, ...]:
    above, below = (
        np.array([weights.get(quantity, 0) for quantity in QUANTITIES], dtype=np.float64)
        for weights in (MEASURES | LITERAL_MEASURES)[name]
    )
    if name == "mse":  # of an element, not of a row
        below = below * width
    of_losses = name.endswith("_loss") or name == "kl" or "recovered" in name
    over = f"{'literal_' * name.startswith('literal')}predictions" if of_losses else "rows"
    tokens = int(moments.sums[QUANTITIES.index(over)])
    return (name, *ratio(moments, above, below), tokens, moments.documents)


def reasons(table: pl.DataFrame) -> dict[str, str]:
    """Why a measure of the table FIDELITY has no value, or no interval, by its name."""
    rows, reasons = {row["measure"]: row for row in table.iter_rows(named=True)}, dict[str, str]()
    for name, row in rows.items():
        if row["value"] is not None:
            if row["low"] is None:
                reasons[name] = "no interval: it needs several documents, and there is only one"
        elif not row["tokens"]:
            reasons[name] = "no measured row has a next token in its context"
        elif name in _HARM:
            what, put_in, clean = _HARM[name]
            losses = f"{rows[put_in]['value']:.4f} against {rows[clean]['value']:.4f} clean"
            verb = "do" if what == "zeros" else "does"
            reasons[name] = (
                f"{what} in place of x {verb} no harm (loss {losses}), so there is nothing to recover"
            )
        else:
            reasons[name] = "what is to be reconstructed is the same in all rows"
    return reasons
