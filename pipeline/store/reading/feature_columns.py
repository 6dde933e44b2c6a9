"""The columns by which features are searched: those that the report's table shows, and what else is a number.

A condition names a column without its table, so the names are one list: first COLUMNS, then every other
column of one value a feature of the tables `features` and `profile`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from pipeline.statistics import feature_schema
from pipeline.store.reading.conditions import Column, Columns, comparisons, expression, parse
from pipeline.store.reading.site_access import SiteAccess
from pipeline.store.records.registry import job_of
from schemas.errors import InputError
from schemas.tables.tables import PROFILE


class FeatureColumn(NamedTuple):
    """A column of a table with a row per feature, what stands above it in the report, and what that means.

    `name` is what conditions call it, `column` its name in the table.
    """

    table: str
    name: str
    title: str
    help: str
    column: str


def _column(table: str, name: str, title: str, help_text: str, column: str = "") -> FeatureColumn:
    return FeatureColumn(table, name, title, help_text, column or name)


COLUMNS = (
    _column("features", "n_active", "active rows", "tokens on which it fires"),
    _column("features", "frequency", "frequency", "active rows / counted rows"),
    _column("features", "active_documents", "documents", "documents in which it fires"),
    _column("features", "mean_active", "mean active", "mean activation over active rows"),
    _column("features", "max_activation", "largest", "largest activation"),
    _column("features", "sigma_over_mu", "σ / μ", "standard deviation / mean over all counted rows"),
    _column(
        "profile", "top_token_share", "token share", "share of its rows that are on its most common token"
    ),
    _column("profile", "token_entropy_bits", "token bits", "entropy of the tokens on which it fires"),
    _column("logits", "entropy_bits", "logit bits", "entropy of the next token under its direction"),
    _column("logits", "max_probability", "max prob.", "largest probability of the next token"),
    _column("feature_clusters", "cluster", "cluster", "cluster by decoder direction"),
    _column("coactivation_clusters", "cocluster", "co-cluster", "cluster by co-activation", "cluster"),
)
"""What the report's table of features shows, as far as the tables are there."""


class _Source(NamedTuple):
    table: str
    column: str
    dtype: pl.DataType


def columns_of(store: SiteAccess, site: str) -> Columns:
    """The columns that a condition on features may name."""
    sources = _sources(store, site)
    columns = {name: Column(pl.col(name), s.dtype, is_statistic=True) for name, s in sources.items()}
    return Columns({"feature": Column(pl.col("feature"), pl.UInt32()), **columns})


def feature_values(store: SiteAccess, site: str, names: Sequence[str]) -> pl.LazyFrame:
    """`feature` and the columns of these names, for every feature; null where a table has not the feature.

    Raises InputError where the feature table is not there.
    """
    sources = {name: source for name, source in _sources(store, site).items() if name in names}
    frame = store.scan_table(site, "features").select("feature")
    for table in dict.fromkeys(source.table for source in sources.values()):
        some = {name: pl.col(s.column) for name, s in sources.items() if s.table == table}
        part = store.scan_table(site, table).select("feature", **some)
        frame = frame.join(part, on="feature", how="left", maintain_order="left")
    return frame.select("feature", *(name for name in dict.fromkeys(names) if name != "feature"))


def features_where(
    store: SiteAccess, site: str, where: Sequence[str], more: Sequence[str] = ()
) -> pl.DataFrame:
    """The features that fit all of some conditions, by number, with the columns that these name and `more`.

    Raises InputError where a condition cannot be read, or names a column that is not there.
    """
    columns, trees, named = columns_of(store, site), [], list[str]()
    for text in where:
        about = f"--where {text!r}"
        tree = parse(text, about)
        for each in comparisons(tree):
            if each.name not in columns:
                require_known(each.name, columns, about)
            named.append(columns.resolve(each.name, about)[0])
        trees.append(expression(tree, columns, about))
    return feature_values(store, site, [*named, *more]).filter(*trees).collect()


def require_known(name: str, columns: Columns, about: str) -> None:
    """InputError where the column is of a table that is not there, with the command that makes it."""
    known = {column.name: column.table for column in COLUMNS} | dict.fromkeys(PROFILE, "profile")
    known = {**dict.fromkeys(feature_schema(), "features"), **known}
    table = known.get(name.lower())
    if table is not None and name.lower() not in columns:
        raise InputError(
            f"{about}: column {name} is one of the table {table!r}, which does not exist: run "
            f"`latentlake {job_of(table)}`"
        )


def _sources(store: SiteAccess, site: str) -> dict[str, _Source]:
    """Name of each column -> where it is."""
    schemas = {
        table: store.scan_table(site, table).collect_schema()
        for table in dict.fromkeys(column.table for column in COLUMNS)
        if store.has_table(site, table)
    }
    listed = [(c.name, c.table, c.column) for c in COLUMNS if c.column in schemas.get(c.table, ())]
    listed += [(name, table, name) for table in ("features", "profile") for name in schemas.get(table, ())]
    sources = dict[str, _Source]()
    for name, table, column in listed:
        dtype = schemas[table][column]
        if name != "feature" and (dtype.is_numeric() or dtype == pl.Boolean):
            sources.setdefault(name, _Source(table, column, dtype))
    return sources
