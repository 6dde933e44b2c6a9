"""What a sentence may hold of the outside: values cut to a length, and never the secrets of a URL."""

from __future__ import annotations

import reprlib
from typing import Any

LONGEST_VALUE = 200
LONGEST_SENTENCE = 4_000
"""Characters; what is longer loses its middle."""
MOST_ERRORS = 5
"""Errors of one file that are printed; of the others their number."""


def shorten(text: str, most: int = LONGEST_SENTENCE) -> str:
    """The text, of at most `most` characters: the middle of a longer one is cut out."""
    if len(text) <= most:
        return text
    head = (most - 1) * 3 // 4
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def shown(value: Any) -> str:
    """The value's repr, cut in depth and length."""
    return shorten(_REPR.repr(value), LONGEST_VALUE)


def joined(sentences: list[str], most: int = MOST_ERRORS) -> str:
    """The first of them, and how many more there are."""
    more = [f"and {len(sentences) - most:,} more"] if len(sentences) > most else []
    return "; ".join(sentences[:most] + more)


class _Repr(reprlib.Repr):
    """A tuple, which a list of a file becomes, is shown as a list; a number of any length is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxstring = 4, 8, 8, LONGEST_VALUE

    def repr_tuple(self, x: tuple[Any, ...], level: int) -> str:
        return self.repr_list(list(x), level)

    def repr_int(self, x: int, level: int) -> str:  # noqa: ARG002 - as reprlib calls it
        bits = x.bit_length()
        return repr(x) if bits <= 256 else f"a number of {bits:,} bits"


_REPR = _Repr()
