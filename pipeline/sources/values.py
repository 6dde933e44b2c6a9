"""Check what a document holds: a text that is text, and labels of one type a column."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from schemas.errors import InputError

_TYPES = {"String": (str,), "Int64": (int,), "Float64": (float, int), "Boolean": (bool,)}
_DTYPES: dict[type, str] = {str: "String", int: "Int64", float: "Float64", bool: "Boolean"}
MOST_TEXT, MOST_LINE = 64 << 20, 128 << 20
"""Bytes of UTF-8 of a document, for to tokenize one takes 25 to 130 times as much memory; and of a line of
JSON, in which a letter may take twice as many."""

_LOOK_AHEAD = 1000
"""Documents that are searched for the first value of a label, where the format declares no types."""


def check_columns(names: Iterable[str], columns: Iterable[str], where: str) -> None:
    """InputError that names the first of `names` that is not among `columns`."""
    known = list(columns)
    for name in names:
        if name not in known:
            raise InputError(
                f"{where} has no column {name!r}; it has {', '.join(known) or 'none'} "
                "(see corpus.text_column and corpus.label_columns)"
            )


def check_text(text: Any, column: str, where: str) -> str:
    """The text itself; an empty one is fine, null and other types are not."""
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        raise InputError(
            f"{where}: {column!r} is {kind}, not text; remove the document or make it an empty string"
        )
    # letters first: a text that is far too long is not encoded to learn that
    require_text_size(len(text), where)
    require_text_size(len(_unicode(text, column, where).encode()), where)
    return text


def require_text_size(size: int, where: str) -> None:
    """InputError where a document is larger than MOST_TEXT bytes."""
    if size > MOST_TEXT:
        raise InputError(
            f"{where}: a document of {size:,} bytes, more than the allowed {MOST_TEXT:,}: cut it "
            "into several, as lines of a .jsonl file"
        )


def check_label(value: Any, dtype: str, column: str, where: str) -> Any:
    """The label as its column's type holds it: null stays null, whole numbers may become floats.

    In a column of another type NaN and infinity are null, as JSON's writers spell a missing value.
    """
    if value is None or (dtype != "Float64" and _is_missing(value)):
        return None
    if type(value) not in _TYPES[dtype]:
        kind = _DTYPES.get(type(value), type(value).__name__)
        raise InputError(f"{where}: label {column!r} is {value!r} ({kind}), but the column is {dtype}")
    if dtype == "Int64" and not -(2**63) <= value < 2**63:
        raise InputError(f"{where}: label {column!r} is {value}, beyond 64 bits; make it a string")
    if dtype == "String":
        require_text_size(len(value), f"{where}: label {column!r}")
        return _unicode(value, column, where)
    return float(value) if dtype == "Float64" else value


def _unicode(text: str, column: str, where: str) -> str:
    """JSON can spell half a surrogate pair, which no UTF-8 file and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: {column!r} holds a lone surrogate {text[error.start]!r}, which is not Unicode text"
        ) from None
    return text


def infer_dtypes(labels: Iterable[Sequence[Any]], columns: Sequence[str], where: str) -> dict[str, str]:
    """Types of the first values that are not null; a column that has none among the first is left out.

    One that begins with NaN or infinity holds floats, unless text or true/false follow.
    """
    dtypes: dict[str, str] = {}
    floats: dict[str, str] = {}
    for values in islice(labels, _LOOK_AHEAD):
        for column, value in zip(columns, values, strict=True):
            if _is_missing(value):
                floats[column] = "Float64"
            elif value is not None and column not in dtypes:
                dtype = _dtype(value, column, where)
                dtypes[column] = floats.get(column, dtype) if dtype == "Int64" else dtype
        if len(dtypes) == len(columns):
            break
    return floats | dtypes


def _is_missing(value: Any) -> bool:
    """Whether a label is a number that says nothing."""
    return isinstance(value, float) and not math.isfinite(value)


def _dtype(value: Any, column: str, where: str) -> str:
    if type(value) not in _DTYPES:
        raise InputError(
            f"{where}: label {column!r} is {value!r} ({type(value).__name__}); labels are strings, numbers "
            "or true/false"
        )
    return _DTYPES[type(value)]
