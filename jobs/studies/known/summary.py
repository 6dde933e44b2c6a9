"""An SAE as a whole against the truth: the table `truth_summary`, which is one row.

Each measure is that of sae-lens 6.54's `eval_sae_on_synthetic_data` (synthetic/evals.py). Shapes: S features
of the SAE, F true ones.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from jobs.studies.known.compare import Side
from jobs.studies.known.counts import Counts
from jobs.studies.known.matching import mcc, uniqueness
from pipeline.synthetic.dictionary.truth import KnownTruth
from schemas.tables.tables import TRUTH_SUMMARY
from schemas.values import F64, I64


def summary_table(
    truth: KnownTruth, side: Side, features: pl.DataFrame, counts: Counts, *, redrawn: bool
) -> pl.DataFrame:
    """Schema TRUTH_SUMMARY; arguments as of `features_table`."""
    rows, n_active = int(features["counted_rows"][0]), features["n_active"].to_numpy()
    measures: dict[str, float | None] = {
        "counted_rows": rows,
        "features": len(n_active),
        "true_features": len(truth.vectors),
        "dead": int((n_active == 0).sum()),
        "l0": n_active.sum() / rows,
        "true_l0": counts.drawn.sum() / rows if redrawn else None,
        "expected_l0": float(truth.frequency.sum()),
        "explained_variance": counts.reconstructed.explained_variance,
        "shrinkage": counts.reconstructed.shrinkage,
        "mcc": mcc(side.cosines.decoder, side.match),
        "uniqueness": uniqueness(side.cosines.decoder),
    }
    if redrawn:
        measures |= detection(n_active, counts.drawn[side.nearest], counts.nearest_hits, rows)
    table = pl.DataFrame(
        {name: [measures.get(name)] for name in TRUTH_SUMMARY}, schema=pl.Schema(TRUTH_SUMMARY)
    )
    return table.fill_nan(None)


def detection(n_active: I64, drawn: I64, hits: I64, rows: int) -> dict[str, float]:
    """How well features detect where true ones fire, averaged over features; what is not defined counts as 0.

    int64 [S]: rows in which the feature is active, in which its true one fires, and both.
    """
    precision, recall = _ratio(hits, n_active), _ratio(hits, drawn)
    f1 = _ratio(2 * precision * recall, precision + recall)
    accuracy = (rows - n_active - drawn + 2 * hits) / rows
    measures = {"precision": precision, "recall": recall, "f1": f1, "accuracy": accuracy}
    return {name: float(values.mean()) for name, values in measures.items()}


def _ratio(part: I64 | F64, whole: I64 | F64) -> F64:
    ratio: F64 = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return ratio
