"""What the fidelity of a site is told by: totals of documents, and the measures that are ratios of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from pipeline.statistics.ratios import Moments, ratio
from schemas.tables import Schema
from schemas.values import F64

PREDICTED = ("predictions", "clean", "patched", "zero", "mean", "kl")
MEASURED = ("rows", "sse", "sst", "cosine", "active")
QUANTITIES = (*PREDICTED, *MEASURED)
"""Totals of a document. Over its predictions: how many, and nats of loss, clean and with each stand-in, and
of KL(clean || patched). Over its measured rows: how many, squared errors of the reconstruction, squared
deviations of the target from its mean, cosines of both, active features."""

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
    "value": pl.Float64(),
    "se": pl.Float64(),
    "low": pl.Float64(),
    "high": pl.Float64(),
    "tokens": pl.Int64(),
    "documents": pl.Int64(),
}
"""`se`, `low`, `high`: standard error and 95 % interval, clustered by document; `tokens`: predictions or rows
that the measure is over. Losses and KL in nats; mse of an element; l0 in features. Null: not defined (zeros
that do no harm leave nothing to recover) or not known (one document)."""

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


def row_of(found: Moments) -> dict[str, Any]:
    """A row of FIDELITY_SHARDS but for the shard and what it was made from."""
    sums = dict(zip(QUANTITIES, found.sums.tolist(), strict=True))
    return {"documents": found.documents, **sums, "products": found.products.ravel().tolist()}


def summary(shards: pl.DataFrame, width: int) -> pl.DataFrame:
    """The table FIDELITY from the sums of shards, added in their order; `width` is that of the target."""
    m = len(QUANTITIES)
    found = Moments.none(m)
    for row in shards.iter_rows(named=True):
        sums = np.array([row[name] for name in QUANTITIES])
        found = found.plus(Moments(row["documents"], sums, np.array(row["products"]).reshape(m, m)))
    lines = [_line(name, found, width) for name in MEASURES]
    return pl.DataFrame(lines, schema=FIDELITY, orient="row").fill_nan(None)


def _line(name: str, found: Moments, width: int) -> tuple[Any, ...]:
    above, below = (_weights(weights) for weights in MEASURES[name])
    if name == "mse":
        below = below * width
    over = "predictions" if "predictions" in MEASURES[name][1] or name.startswith("recovered") else "rows"
    tokens = int(found.sums[QUANTITIES.index(over)])
    return (name, *ratio(found, above, below), tokens, found.documents)


def _weights(of: dict[str, int]) -> F64:
    return np.array([of.get(name, 0) for name in QUANTITIES], dtype=np.float64)
