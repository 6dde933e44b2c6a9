"""The tables of a site that pages of features show, kept open: the rows of one feature at a time."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import polars as pl

from jobs.report.clusters import names_by_tokens
from jobs.report.tables import CLUSTERS, KNOWN, Tables
from pipeline.store import FeatureStore
from pipeline.store.records.registry import find_table, job_of


class _Open(NamedTuple):
    """A table that was checked when its file was in this state."""

    state: object
    frame: pl.LazyFrame
    stale: bool


class SiteTables:
    """Those tables; one that is replaced is opened again."""

    def __init__(self, store: FeatureStore, site: str) -> None:
        self._store, self._site = store, site
        self._tables: dict[str, _Open] = {}
        self._cluster_names: tuple[object, dict[str, list[str]]] = None, {}

    def open(self) -> None:
        """Check the tables that are new; InputError where one is damaged, or there is no feature table."""
        names = [name for name in self._store.tables(self._site) if _is_shown(name)]
        if "features" not in names:
            self._store.scan_features(self._site)  # which says what to do
        states = {name: self._state(name) for name in names}
        kept = {name: table for name, table in self._tables.items() if table.state == states.get(name, self)}
        for name in names:
            if name not in kept:
                frame = self._store.scan_table(self._site, name, warn_stale=False)
                kept[name] = _Open(states[name], frame, self._store.is_stale(self._site, name))
        self._tables = kept

    def rows_of(self, feature: int) -> dict[str, pl.DataFrame]:
        """The rows of a feature in each table, in the order of the table."""
        self.open()
        is_feature = pl.col("feature") == feature
        try:
            frames = pl.collect_all([table.frame.filter(is_feature) for table in self._tables.values()])
        except pl.exceptions.PolarsError:  # one that is replaced at this moment
            self._tables = {}
            self.open()
            frames = pl.collect_all([table.frame.filter(is_feature) for table in self._tables.values()])
        return dict(zip(self._tables, frames, strict=True))

    def stale(self) -> list[list[str]]:
        """Tables that were made before the newest shards were committed, and the command that makes each."""
        return [[name, f"latentlake {job_of(name)}"] for name, table in self._tables.items() if table.stale]

    def missing(self) -> dict[str, str]:
        """The command that makes each table that a page has a place for, and that is not there."""
        return {name: f"latentlake {job_of(name)}" for name in KNOWN if name not in self._tables}

    def cluster_names(self) -> dict[str, list[str]]:
        """What the clusters of each kind of features are called."""
        kinds = [kind for kind in CLUSTERS if f"{kind}_clusters" in self._tables]
        state = [self._tables[f"{kind}_clusters"].state for kind in kinds]
        if self._cluster_names[0] != state:
            tables = Tables(self._store, self._site)
            summaries = {kind: tables.summary(kind) for kind in kinds}
            names = {kind: names_by_tokens(some) for kind, some in summaries.items() if some is not None}
            self._cluster_names = state, names
        return self._cluster_names[1]

    def _state(self, name: str) -> object:
        """What another content of the table's file has other; None where that is not cheap to know."""
        path = self._store.layout.table(self._site, name)
        if not isinstance(path, Path):
            return None
        about = path.stat()
        return about.st_size, about.st_mtime_ns, about.st_ino


def _is_shown(table: str) -> bool:
    return table == "examples" or find_table(table).page == "feature"
