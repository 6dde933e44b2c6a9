"""The stored tables that a site's pages are made from: which there are, and their rows feature by feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from polars import selectors as cs

from pipeline.store import FeatureStore
from pipeline.store.derived.names import TOKENS, most_fired
from pipeline.store.records.registry import TABLES, find_table, job_of
from schemas.values import I64

CLUSTERS = {
    "feature": "Decoder directions",
    "coactivation": "Co-activation",
    "density": "Dense regions",
    "context": "Contexts",
    "document": "Documents",
}
"""Kinds of clusters: their tables are `<kind>_clusters` and `<kind>_cluster(s)_summary`."""

KNOWN = tuple(table.name for table in TABLES if table.page and "*" not in table.name)
"""Tables that a report has a place for."""

LAID_OUT = "tables"
_GROUP = 1 << 12
"""Rows in a row group of what is laid out."""


@dataclass(frozen=True)
class State:
    """How a table stands: there or not, fresh or stale, and the command that makes it."""

    name: str
    exists: bool
    stale: bool
    rows: int
    command: str


class Tables:
    """The tables of one site, as far as there are any."""

    def __init__(self, store: FeatureStore, site: str) -> None:
        self.store, self.site = store, site

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the tables there are."""
        return frozenset(self.store.tables(self.site))

    def scan(self, name: str) -> pl.LazyFrame:
        """One table; the pages say that it is stale, so no warning is given here."""
        return self.store.scan_table(self.site, name, warn_stale=False)

    def read(self, name: str) -> pl.DataFrame | None:
        """One table, whole; None where there is none."""
        return self.scan(name).collect() if name in self.names else None

    def summary(self, kind: str) -> pl.DataFrame | None:
        """What sums up the clusters of a kind, a row each."""
        names = (f"{kind}_cluster_summary", f"{kind}_clusters_summary")
        return next((self.read(name) for name in names if name in self.names), None)

    @cached_property
    def states(self) -> list[State]:
        """All tables there are or could be."""
        states = []
        for name in (*KNOWN, *sorted(self.names - set(KNOWN))):
            exists = name in self.names
            stale = exists and self.store.is_stale(self.site, name)
            rows = self.scan(name).select(pl.len()).collect().item() if exists else 0
            states.append(State(name, exists, stale, rows, f"latentlake {job_of(name)}"))
        return states

    def missing(self) -> dict[str, str]:
        """The command that makes each table of a feature's page that is not there."""
        return {state.name: state.command for state in self.states if not state.exists}

    def lay_out(self, chosen: I64, folder: Path) -> None:
        """Copy the rows of the chosen features into `folder`, by feature, so that a range is read quickly.

        A table is held in memory once: some kilobytes a feature of the largest, which has the histograms.
        """
        (folder / LAID_OUT).mkdir()
        numbers = pl.Series("feature", chosen, pl.UInt32)
        for name in sorted(name for name in self.names if find_table(name).page == "feature"):
            table = self.scan(name).filter(pl.col("feature").is_in(numbers.implode())).collect()
            table = table.sort("feature", maintain_order=True)
            table.write_parquet(folder / LAID_OUT / f"{name}.parquet", row_group_size=_GROUP)


class ByFeature:
    """Some rows of a table with the column `feature`, ascending: those of one feature as dicts."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._names = frame.columns
        self._features = frame["feature"].to_numpy()
        self._columns = [frame[name].to_list() for name in self._names]

    def rows_of(self, feature: int) -> list[dict[str, Any]]:
        """The rows of one feature, in the table's order."""
        # Keys of the column's own type: others would make searchsorted convert the whole column each time.
        first, last = np.searchsorted(self._features, np.array([feature, feature + 1], self._features.dtype))
        cells = (column[first:last] for column in self._columns)
        return [dict(zip(self._names, row, strict=True)) for row in zip(*cells, strict=True)]


def read_range(folder: Path, first: int, last: int) -> Mapping[str, ByFeature]:
    """The rows of features first .. last of every table that was laid out."""
    inside = pl.col("feature").is_between(first, last)
    return {
        path.stem: ByFeature(pl.scan_parquet(path).filter(inside).collect())
        for path in sorted((folder / LAID_OUT).iterdir())
    }


def names_of(examples: pl.DataFrame, d_sae: int, n: int = TOKENS) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The tokens on which each feature fires most often among its strongest rows: int32 [d_sae, n], -1: none.

    `examples` are the rows `feature`, `rank`, `token_id` of its strongest rows; equally frequent tokens in
    the order of their best rank.
    """
    tokens = most_fired(examples, n)
    names = np.full((d_sae, n), -1, np.int32)
    names[tokens["feature"].to_numpy(), tokens["place"].to_numpy()] = tokens["token_id"].to_numpy()
    return names


def token_order(windows: Sequence[Path], folder: Path) -> I64:
    """The tokens that pages name, int64: those of `windows` (`cut_windows`), the most frequent first.

    Then come those of `names.npy` and of the laid-out table `logits` in `folder`, by number. Equally frequent
    ones go by number too, so that the order is that of the store, not of a task.
    """
    order = np.empty(0, np.int64)
    if windows:
        tokens = pl.scan_parquet(list(windows), glob=False).select(token=pl.col("token_ids").explode())
        counts = tokens.group_by("token").len().collect(engine="streaming")
        order = counts.sort("len", "token", descending=[True, False])["token"].to_numpy().astype(np.int64)
    others = [np.load(folder / "names.npy").ravel().astype(np.int64)]
    logits = folder / LAID_OUT / "logits.parquet"
    if logits.is_file():
        lists = pl.scan_parquet(logits).select(cs.ends_with("_tokens").explode().unique().implode())
        others += [column.explode().drop_nulls().to_numpy().astype(np.int64) for column in lists.collect()]
    rest = np.setdiff1d(np.concatenate(others), order)
    return np.concatenate([order, rest[rest >= 0]])
