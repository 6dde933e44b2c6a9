"""Conditions on label columns, typed as COLUMN=VALUE; what is misspelt is named with what is nearest."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import polars as pl

from pipeline.store import FeatureStore
from pipeline.store.records.tokens import read_document_labels
from schemas.errors import InputError

TRUTHS = {"true": True, "false": False, "1": True, "0": False}

_MOST_COMPARED = 20_000
"""Values, of those most alike in length, that a misspelt one is compared with."""


def label_filter(store: FeatureStore, text: str, column_of: Callable[[str], str] = str) -> pl.Expr:
    """A condition on a label column from COLUMN=VALUE; `column_of`: what a label's column is called."""
    column, value = _split(store, text)
    label, is_whole = pl.col(column_of(column)), store.lake.label_columns[column] == "Int64"
    if is_whole and not (isinstance(value, int) and -(1 << 63) <= value < 1 << 63):
        return label.ne(label)  # it holds whole numbers of 64 bits, so no row has this one
    return label.eq(value)


def require_values(store: FeatureStore, where: Sequence[str]) -> None:
    """InputError where no document has one of some values, with the nearest, or has them all.

    Reads the label columns of all token shards: for when no row is left.
    """
    conditions = [_split(store, text) for text in where]
    for text, (column, value) in zip(where, conditions, strict=True):
        known = values_of(store, column)
        if value not in known:
            raise InputError(
                f"--where {text!r}: no document has that value of label {column}; {_nearest(value, known)}"
            )
    if len(conditions) > 1 and not _have_all(store, conditions):
        each = " and ".join(f"--where {text!r}" for text in where)
        raise InputError(
            f"no document has all of {each}, though some documents have each: leave one of them out"
        )


def _have_all(store: FeatureStore, conditions: Sequence[tuple[str, Any]]) -> bool:
    """Whether a document has every one of some values."""
    columns, wanted = list(dict(conditions)), dict(conditions)
    if any(wanted[column] != value for column, value in conditions):
        return False
    dtypes = [store.lake.label_columns[column] for column in columns]
    for record in store.shards:
        labels = read_document_labels(store.layout, record, columns).select(columns).unique().drop_nulls()
        for values in labels.iter_rows():
            if [_typed(*pair) for pair in zip(dtypes, values, strict=True)] == list(wanted.values()):
                return True
    return False


def values_of(store: FeatureStore, column: str) -> set[Any]:
    """The values of a label column, of its type; a missing one is none."""
    dtype = store.lake.label_columns[column]
    distinct: set[Any] = set()
    for record in store.shards:
        values = read_document_labels(store.layout, record, [column])[column].unique().drop_nulls()
        distinct.update(_typed(dtype, value) for value in values)
    return distinct


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The few of some names that are most alike, in whichever case they are written."""
    of_length = sorted(known, key=lambda each: (abs(len(each) - len(name)), each))[:_MOST_COMPARED]
    # reversed, so that of names that differ in case alone the most alike in length stays
    by_folded = {each.casefold(): each for each in reversed(of_length)}
    return [
        by_folded[each] for each in difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.6)
    ]


def _split(store: FeatureStore, text: str) -> tuple[str, Any]:
    """Column and value; InputError where the store has no such column, or it holds no such kind of value."""
    column, separator, value = text.partition("=")
    if not separator:
        raise InputError(f"--where {text!r} is not COLUMN=VALUE, such as party=Republican")
    known = store.lake.label_columns
    if column not in known:
        near = nearest(column, known)
        names = f"; the nearest is {near[0]}" if near else f"; it has {', '.join(known) or 'none'}"
        raise InputError(f"--where {text!r}: the store has no label {column!r}{names}")
    try:
        return column, _typed(known[column], value)
    except (ValueError, KeyError):
        wanted = "true or false" if known[column] == "Boolean" else "a number"
        raise InputError(
            f"--where {text!r}: label {column} is {known[column]}, and {value!r} is not {wanted}"
        ) from None


def _typed(dtype: str, value: str) -> Any:
    """The value as a column of this type holds it; 1999.0 is the whole number 1999."""
    if dtype == "String":
        return value
    if dtype == "Boolean":
        return TRUTHS[value.strip().lower()]
    if "_" in value:
        raise ValueError(value)  # Python reads 1_900
    try:
        return int(value)
    except ValueError:
        number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return int(number) if number.is_integer() else number


def _nearest(value: Any, known: set[Any]) -> str:
    """The values nearest to one that is not there, or the few there are."""
    if not known:
        return "no document has any"
    if isinstance(value, str):
        near = nearest(value, known) or sorted(known)[:5]
    else:
        near = [f"{each}" for each in sorted(known, key=lambda each: (abs(each - value), each))[:3]]
    what = "the nearest is" if len(near) == 1 else f"the nearest of {len(known):,} are"
    return f"{what} {', '.join(map(repr, near) if isinstance(value, str) else near)}"
