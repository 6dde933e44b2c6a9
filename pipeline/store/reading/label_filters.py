"""Conditions on labels (--where): what is misspelt is named with what is nearest.

The grammar is that of `pipeline.store.reading.conditions`. What is not a condition but COLUMN=VALUE of a
label, is that: the value is all the text after the sign, as in `title=Pride and Prejudice`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import polars as pl

from pipeline.store.reading.conditions import (
    Column,
    Columns,
    Comparison,
    ConditionError,
    Tree,
    comparisons,
    expression,
    nearest,
    parse,
    read_number,
)
from pipeline.store.records.tokens import read_document_labels
from schemas.errors import InputError
from schemas.records import ShardRecord
from schemas.tables.tables import LABEL_DTYPES
from schemas.values import Bool

if TYPE_CHECKING:
    from pipeline.store.reading.site_access import SiteAccess

Where: TypeAlias = str | pl.Expr
"""A condition on labels: text as of `--where`, or an expression over the label columns."""

WHERE_HELP = "as COLUMN=VALUE, or a condition such as \"year > 1865 and party = 'Whig'\"; may be repeated."
"""The end of the help of an option --where."""


class _Read(NamedTuple):
    """A condition, and why it was not read as one but as COLUMN=VALUE ("": it was)."""

    tree: Tree
    problem: str = ""


def label_filter(store: SiteAccess, text: str, column_of: Callable[[str], str] = str) -> pl.Expr:
    """A condition on labels, null where it is unknown; `column_of`: what a label's column is called.

    Raises InputError where the text is no condition on the store's labels.
    """
    return expression(_read(store, text).tree, label_columns(store, column_of), _about(text))


def label_columns(store: SiteAccess, column_of: Callable[[str], str] = str) -> Columns:
    """The labels of a store, which conditions name; `column_of`: what a label's column is called."""
    columns = {
        name: Column(pl.col(column_of(name)), LABEL_DTYPES[dtype])
        for name, dtype in store.lake.label_columns.items()
    }
    return Columns(columns, "label")


def document_condition(store: SiteAccess, where: Where) -> pl.Expr:
    """The same, where it may be an expression already; InputError where that names what is no label."""
    if isinstance(where, str):
        return label_filter(store, where)
    if unknown := set(where.meta.root_names()) - set(store.lake.label_columns):
        known = ", ".join(store.lake.label_columns) or "none"
        raise InputError(f"where names {', '.join(sorted(unknown))}; known labels: {known}")
    return where


def documents_that_fit(store: SiteAccess, record: ShardRecord, conditions: Sequence[pl.Expr]) -> list[Bool]:
    """For each condition which documents of a shard fit, [M]; where it is unknown they do not.

    InputError where its values are none of true and false.
    """
    names = sorted({name for each in conditions for name in each.meta.root_names()})
    labels = read_labels(store, record, names)
    try:
        values = [labels.select(each).to_series() for each in conditions]
        if wrong := [each.dtype for each in values if each.dtype != pl.Boolean]:
            raise TypeError(f"its values are {wrong[0]}")
    except (pl.exceptions.PolarsError, TypeError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"where is not a condition on labels: {why}") from None
    return [each.fill_null(value=False).to_numpy() for each in values]


def require_values(store: SiteAccess, where: Sequence[str]) -> None:
    """InputError where no document fits one of some conditions, or fits them all: with the nearest values.

    Reads the label columns of all token shards: for when no row is left.
    """
    fits = [False] * len(where)
    fits_all = False
    filters = [label_filter(store, text).fill_null(value=False).alias(str(n)) for n, text in enumerate(where)]
    for labels in _documents(store, list(store.lake.label_columns)):
        each = labels.select(filters)
        fits = [before or bool(now.any()) for before, now in zip(fits, each, strict=True)]
        fits_all = fits_all or (
            bool(where) and bool(each.select(pl.all_horizontal(pl.all())).to_series().any())
        )
    for text, fit in zip(where, fits, strict=True):
        if not fit:
            raise InputError(f"{_about(text)}: {_why_none(store, *_read(store, text))}")
    if len(where) > 1 and not fits_all:
        each_where = " and ".join(map(_about, where))
        raise InputError(
            f"no document has all of {each_where}, though some documents have each: leave one of them out"
        )


def _about(text: str) -> str:
    return f"--where {text!r}"


def _read(store: SiteAccess, text: str) -> _Read:
    try:
        return _Read(parse(text, _about(text)))
    except ConditionError as error:
        name, sign, value = text.partition("=")
        if not sign or name not in store.lake.label_columns:
            raise
        return _Read(Comparison(name, "=", value), str(error).removeprefix(f"{_about(text)}: "))


def _documents(store: SiteAccess, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The labels of the documents of each shard, of their types; each combination of values once."""
    for record in store.shards:
        yield read_labels(store, record, columns).unique()


def read_labels(store: SiteAccess, record: ShardRecord, columns: Sequence[str]) -> pl.DataFrame:
    """Some labels of the documents of a shard, of their types: [M]."""
    typed = [_typed(name, LABEL_DTYPES[store.lake.label_columns[name]]) for name in columns]
    return read_document_labels(store.layout, record, columns).select(typed)


def _typed(name: str, dtype: pl.DataType) -> pl.Expr:
    """A label of its type, from the text that it is read as."""
    if dtype == pl.Boolean:
        return pl.col(name) == "true"
    return pl.col(name).cast(dtype)


def _why_none(store: SiteAccess, tree: Tree, problem: str) -> str:
    """Why no document fits a condition: a value that none has, with the nearest of those that some have."""
    equal = [each for each in comparisons(tree) if each.sign == "="]
    for comparison in equal:
        name, _ = label_columns(store).resolve(comparison.name, "")
        is_value = expression(comparison, label_columns(store), "")
        shards = [labels.drop_nulls() for labels in _documents(store, [name])]
        if not any(labels.select(is_value.any()).item() for labels in shards):
            known = pl.concat(shards)[name].unique()
            value = "that value" if tree is comparison else f"the value {comparison.value!r}"
            note = f" (read as COLUMN=VALUE, for as a condition {problem})" if problem else ""
            return f"no document has {value} of label {name}; {_nearest(comparison.value, known)}{note}"
    return "no document fits that condition"


def _nearest(value: str, known: pl.Series) -> str:
    """The values nearest to one that is not there, or the few there are."""
    if not known.len():
        return "no document has any"
    if known.dtype == pl.String:
        near = list(map(repr, nearest(value, known) or known.sort()[:5]))
    elif known.dtype == pl.Boolean:
        near = [str(each) for each in known.sort()]
    else:
        near = [str(each) for each in _closest(known, value)]
    what = "the nearest is" if len(near) == 1 else f"the nearest of {known.len():,} are"
    return f"{what} {', '.join(near)}"


def _closest(known: pl.Series, value: str) -> list[Any]:
    number = read_number(value)
    assert number is not None, value
    return sorted(known, key=lambda each: (abs(each - number.exact), each))[:3]
