"""Two groups of documents compared, as a notebook shows them."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import polars as pl

from pipeline.statistics.documents.clustered import DocumentTotals
from pipeline.store.reading.comparison import compare_groups
from schemas.sentences import several, visible

if TYPE_CHECKING:
    from jobs.notebook.lake import Lake

SHOWN, LEVEL = 10, 0.05
"""Features that are shown, and the q below which a difference is counted as clear."""


class Comparison:
    """What `compare_groups` says of two groups of documents (`Lake.compare`).

    `table`: a row per feature (`schemas.tables.tables.DIFF`), the clearest difference first; `a` and `b`: the
    documents and counted rows of each group.
    """

    def __init__(self, lake: Lake, site: str, where_a: str | pl.Expr, where_b: str | pl.Expr) -> None:
        """Reads all activations of the site once."""
        table, self.a, self.b = compare_groups(lake, site, where_a, where_b)
        self.table = table.sort(
            pl.col("frequency_z").abs(), "feature", descending=[True, False], nulls_last=True
        )
        self.lake, self.site, self.where_a, self.where_b = lake, site, where_a, where_b

    def top(self, n: int = SHOWN) -> pl.DataFrame:
        """The first `n` features with their names."""
        columns = (
            "feature",
            "frequency_a",
            "frequency_b",
            "frequency_difference",
            "frequency_z",
            "frequency_q",
        )
        return self.lake.with_names(self.table.select(columns).head(n), self.site)

    def __repr__(self) -> str:
        return f"{self._summary()}\n{self.top()}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(visible(self._summary()))}</p>{self.top()._repr_html_()}"

    def _summary(self) -> str:
        clear = int((self.table["frequency_q"] < LEVEL).sum())
        groups = (_group("a", self.where_a, self.a), _group("b", self.where_b, self.b))
        return (
            f"{'; '.join(groups)}. {clear:,} of {several(self.table.height, 'feature')} of {self.site} "
            f"differ (q < {LEVEL})"
        )


def _group(name: str, where: str | pl.Expr, totals: DocumentTotals) -> str:
    size = f"{several(totals.documents, 'document')}, {several(totals.rows, 'row')}"
    return f"{name}: {where}, {size}"
