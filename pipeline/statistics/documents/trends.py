"""Whether a feature fires more often the larger a numeric label of its documents is, such as their year.

Document d has the label y, n counted rows, and x of them active. The slope of the least-squares line through
the frequencies x / n, each weighted by its n (which is the line through all rows, active as 1 and else 0), is

    b = sum c x / sum c^2 n,   c = y - (sum n y) / (sum n)

whose numerator is the statistic of P. Armitage, "Tests for linear trends in proportions and frequencies",
Biometrics 11 (1955), and W. G. Cochran (1954). The variance they give it is that of independent rows; here
documents are what is drawn. As in `comparison` it is the larger of two: the sandwich of K.-Y. Liang and S. L.
Zeger (1986), clustered by document,

    var(b) = D / (D - 2) * sum c^2 (x - n (p + b c))^2 / (sum c^2 n)^2,

which comes out far too small where few documents bear a feature, and the same about the common p, with b = 0
and D / (D - 1): the score test of D. D. Boos, "On generalized score tests", The American Statistician 46
(1992). b / se is judged by Student's t with D - 2 degrees of freedom, two-sided.

Null instead of z, p and q: features that fire in too few documents. A label of two values splits documents
as `comparison` does, and the rule is its rule: SUPPORT documents on the smaller side, of those in which the
feature fires. Of other labels the smaller side is that of two values with the same kurtosis: a few
documents far out, on which the slope hangs, are a small side.

Shapes: F features, M documents of a shard, L pairs of a feature and a document in which it fires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.statistics.documents.clustered import Pairs
from pipeline.statistics.documents.comparison import SUPPORT, Change, judged
from pipeline.statistics.features.ragged import run_starts
from schemas.tables.tables import LABEL_TRENDS
from schemas.values import F64, I64

TREND_BYTES = 8 * 6
"""Memory for each feature and numeric label."""
FEWEST_DOCUMENTS = 3


@dataclass(frozen=True)
class NumericLabel:
    """A label column of numbers over all documents with a finite value and a counted row.

    t = (y - centre) / scale has mean 0 and mean square 1 over their rows; `moments` are the sums of n t^k
    for k = 0 .. 4, `squares` those of n^2 t^k.
    """

    name: str
    centre: float
    scale: float
    documents: int
    moments: tuple[float, ...]
    squares: tuple[float, ...]
    kurtosis: float
    """Of t over documents, each of which counts once."""

    @classmethod
    def of(cls, name: str, values: F64, documents: I64, rows: I64, rows_squared: I64) -> NumericLabel | None:
        """From each value [V] with its documents, and the sums of n and n^2 over these; None: no slope.

        There is none below three documents, and where all values are the same.
        """
        known = np.isfinite(values)
        values, n, squared = values[known], rows[known].astype(np.float64), rows_squared[known]
        if documents[known].sum() < FEWEST_DOCUMENTS or np.ptp(values) == 0:
            return None
        centre = float(np.average(values, weights=n))
        scale = float(np.sqrt(np.average((values - centre) ** 2, weights=n)))
        # t has mean 0 and mean square 1, so that high powers of years and the like keep their digits
        powers = [((values - centre) / scale) ** k for k in range(5)]
        # the kurtosis of documents, whose mean is another one than that of rows
        each = documents[known].astype(np.float64)
        apart = values - np.average(values, weights=each)
        kurtosis = np.average(apart**4, weights=each) / np.average(apart**2, weights=each) ** 2
        return cls(
            name,
            centre,
            scale,
            int(documents[known].sum()),
            tuple(float((n * power).sum()) for power in powers),
            tuple(float((squared * power).sum()) for power in powers),
            float(kurtosis),
        )

    def standardised(self, values: pl.Series) -> F64:
        """T of each document's value, NaN where it has none: float64 [M]."""
        y = values.cast(pl.Float64).to_numpy()
        return np.where(np.isfinite(y), (y - self.centre) / self.scale, np.nan)

    def smaller_side(self) -> float:
        """Share of the rarer of two values of this kurtosis k: s (1 - s) = 1 / (k + 3).

        Of documents or of rows, whichever is less, as `comparison` has it.
        """
        of_rows = self.moments[4] * self.moments[0] / self.moments[2] ** 2
        kurtosis = max(of_rows, self.kurtosis, 1.0)
        return float((1 - np.sqrt(1 - 4 / (kurtosis + 3))) / 2)


class TrendSums:
    """Sums of features 0 .. n_features - 1 over documents, for each of some labels, added in shard order."""

    def __init__(self, n_features: int, labels: Sequence[NumericLabel]) -> None:
        self._labels, self._n_features = tuple(labels), n_features
        names = ("active", "tx", "ttxx", "ttxn", "tttxn")
        self._sums: list[dict[str, NDArray[Any]]] = [
            {"documents": np.zeros(n_features, np.int64), **{name: np.zeros(n_features) for name in names}}
            for _ in self._labels
        ]

    def add(self, pairs: Pairs, numbers: Sequence[F64], rows: I64) -> None:
        """Add whole features of a shard; `numbers` [M] are each label's t, `rows` [M] the counted rows."""
        starts = run_starts(pairs.feature)
        if not len(starts):
            return
        features, n = pairs.feature[starts], rows[pairs.document].astype(np.float64)
        for sums, of_documents in zip(self._sums, numbers, strict=True):
            t = of_documents[pairs.document]
            known = ~np.isnan(t)
            # documents without a value add 0, so that all labels share the runs of features
            t, x = np.where(known, t, 0), np.where(known, pairs.active, 0).astype(np.float64)
            tx = t * x
            columns = {"documents": known.astype(np.int64), "active": x, "tx": tx}
            columns |= {"ttxx": tx * tx, "ttxn": t * tx * n, "tttxn": t * t * tx * n}
            for name, column in columns.items():
                sums[name][features] += np.add.reduceat(column, starts)

    def table(self, first: int) -> pl.DataFrame:
        """The rows of the table `label_trends`, q left out, by feature, then label; features from `first` on.

        Of each label there are the features that fire in a document with a value.
        """
        frames = [self._of(label, sums, first) for label, sums in zip(self._labels, self._sums, strict=True)]
        every = pl.concat([pl.DataFrame(schema=LABEL_TRENDS), *frames])
        return every.filter(pl.col("documents") > 0).sort("feature", maintain_order=True)

    def _of(self, label: NumericLabel, sums: dict[str, NDArray[Any]], first: int) -> pl.DataFrame:
        """Of one label; p and b in units of t are those of the formulas above."""
        d, (n, _, ntt, _, _), (_, _, nntt, nnttt, nntttt) = label.documents, label.moments, label.squares
        p = sums["active"] / n
        b = (sums["tx"] - p * label.moments[1]) / ntt
        common = sums["ttxx"] - 2 * p * sums["ttxn"] + p**2 * nntt
        fitted = common - 2 * b * sums["tttxn"] + 2 * p * b * nnttt + b**2 * nntttt
        # the larger of the score test's variance about p and the sandwich about the line
        squares = np.maximum(common * (d / (d - 1)), fitted * (d / (d - 2)))
        variance = np.maximum(squares, 0) / ntt**2  # rounding may not make it negative
        supported = sums["documents"] * label.smaller_side() >= SUPPORT
        change = Change(b, variance, np.full(len(b), d - 2.0), supported)
        error, z, p = judged(change)
        columns = {
            "feature": np.arange(first, first + self._n_features, dtype=np.uint32),
            "label": [label.name] * self._n_features,
            "documents": sums["documents"],
            "slope": change.difference / label.scale,
            "se": error / label.scale,
            "z": z,
            "p": p,
            "q": np.full(self._n_features, np.nan),
        }
        return pl.DataFrame(columns, schema=LABEL_TRENDS, nan_to_null=True)
