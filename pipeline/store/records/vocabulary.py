"""What tokens put into a text: each by itself, and several that follow one another.

A token may hold a part of a character (of Korean, of an emoji), and a character several code points (emoji
joined by a zero width joiner). Tokens that share a character are shown as one span; where a text for each
token is wanted, the character stands at the token that completes it, the others of the span are empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import polars as pl

from pipeline.store.formats.parquet import read_frame
from pipeline.store.objects.verbs import readable
from schemas.errors import InputError
from schemas.layout import StorePath
from schemas.values import F32

JOINER = "\u200d"
_EXTENDS = {JOINER, "\u20e3", *map(chr, range(0xFE00, 0xFE10)), *map(chr, range(0x1F3FB, 0x1F400))}
"""Code points that belong to the one before them: they join emoji, or choose their look."""

_JOINERS = "".join(sorted(_EXTENDS))

UNKNOWN = "\ufffd"

_REACH = 40
"""Tokens to either side of one that may share its character; a family of emoji takes 25 bytes."""


class Span(NamedTuple):
    """Tokens `start` to `stop` - 1 of some that follow one another, and their text.

    `is_cut`: it is a part of a character whose other parts are not there; bytes are U+FFFD then.
    """

    start: int
    stop: int
    text: str
    is_cut: bool = False


class Shown(NamedTuple):
    """Spans as a strip shows them: their texts, the strongest activation of each, and which one fires."""

    texts: list[str]
    values: F32
    firing: int | None


def joined(tokens: Sequence[bytes]) -> list[Span]:
    """Tokens that follow one another, cut where both a token and a character end.

    Parts of characters that are not whole, at either end of a window, are left out of a span's text where it
    holds anything else, and so is what would join the first character to one before the window.
    """
    data = b"".join(tokens)
    edges, spans, start, first, end = _edges(data), list[Span](), 0, 0, 0
    for place, token in enumerate(tokens):
        end += len(token)
        if end in edges:
            spans.append(_span(first, place + 1, data[start:end]))
            first, start = place + 1, end
    if spans and not spans[0].is_cut:
        spans[0] = spans[0]._replace(text=spans[0].text.lstrip(_JOINERS))
    return spans


def _edges(data: bytes) -> set[int]:
    """Where characters begin and end, in bytes; parts of one stay together."""
    place, before, edges = 0, "", {0}
    for letter in data.decode("utf-8", "surrogateescape"):
        # parts of one character stay together, and so does what joins emoji or chooses their look
        is_inside = (_is_part(letter) and _is_part(before)) or letter in _EXTENDS or before == JOINER
        if not (before and is_inside):
            edges.add(place)
        place += 1 if _is_part(letter) else len(letter.encode())
        before = letter
    return edges | {place}


def _is_part(letter: str) -> bool:
    """Whether it stands for a byte that is not a character."""
    return "\udc80" <= letter <= "\udcff"


def _span(start: int, stop: int, data: bytes) -> Span:
    text = "".join(c for c in data.decode("utf-8", "surrogateescape") if not _is_part(c))
    is_cut = bool(data) and not text.strip(_JOINERS)  # what belongs to a letter that is not there
    return Span(start, stop, text or UNKNOWN if is_cut else text, is_cut)


def shown(spans: Sequence[Span], values: F32, firing: int | None) -> Shown:
    """Spans with the activations [T] of their tokens; those that are cut are left out, but the firing one."""
    kept = [span for span in spans if not span.is_cut or _holds(span, firing)]
    parts = [values[span.start : span.stop] for span in kept]
    strongest = [part[np.abs(part).argmax()] for part in parts]
    place = next((n for n, span in enumerate(kept) if _holds(span, firing)), None)
    return Shown([span.text for span in kept], np.array(strongest, np.float32), place)


def _holds(span: Span, place: int | None) -> bool:
    return place is not None and span.start <= place < span.stop


class Vocabulary:
    """The texts of a lake's tokens by id."""

    def __init__(self, frame: pl.DataFrame) -> None:
        """`frame` as VOCABULARY; before format version 7 it has no bytes, and each token its own text."""
        self._stored: list[str] = frame["text"].to_list()
        self._data: list[bytes] | None = frame["bytes"].to_list() if "bytes" in frame.columns else None

    @classmethod
    def read(cls, path: StorePath) -> Vocabulary:
        """That of a lake; InputError where it is missing or damaged."""
        with readable(path):
            return cls(read_frame(path))

    def __len__(self) -> int:
        return len(self._stored)

    @cached_property
    def texts(self) -> list[str]:
        """Each token as it stands by itself: bytes that are no character are written out, as Python does."""
        if self._data is None:
            return self._stored
        return [data.decode("utf-8", "backslashreplace") for data in self._data]

    @property
    def data(self) -> list[bytes]:
        """What each token puts into a text, in UTF-8; some are a part of a character."""
        return self._data if self._data is not None else [text.encode() for text in self._stored]

    @cached_property
    def _parts(self) -> frozenset[int]:
        """Tokens that may share a character with their neighbours."""
        texts = [data.decode("utf-8", "surrogateescape") for data in self._data or ()]
        # those that begin or end within a character
        return frozenset(
            i
            for i, text in enumerate(texts)
            if text and (any(map(_is_part, text)) or text[0] in _EXTENDS or text[-1] == JOINER)
        )

    def is_split(self, ids: Sequence[int]) -> bool:
        """Whether some of the tokens may share a character."""
        return not self._parts.isdisjoint(ids)

    def spans(self, ids: Sequence[int]) -> list[Span]:
        """Tokens that follow one another; InputError for an id that is not there."""
        self._require(ids)
        if self._data is None or not self.is_split(ids):
            return [Span(n, n + 1, self.texts[i]) for n, i in enumerate(ids)]
        return joined([self._data[i] for i in ids])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each of some tokens that follow one another; joined they are the text."""
        return [text for s in self.spans(ids) for text in (*[""] * (s.stop - s.start - 1), s.text)]

    def reach(self, ids: Sequence[int], place: int) -> tuple[int, int]:
        """The first token of the span that holds the one at `place`, and the token after its last."""
        low = max(0, place - _REACH)
        near = self.spans(ids[low : place + _REACH])
        span = next(span for span in near if _holds(span, place - low))
        return low + span.start, low + span.stop

    def alone(self, ids: Sequence[int]) -> list[str]:
        """The text of each token as it stands by itself; InputError for an id that is not there."""
        self._require(ids)
        return [self.texts[token] for token in ids]

    def _require(self, ids: Sequence[int]) -> None:
        if len(ids) and not 0 <= min(ids) <= max(ids) < len(self):
            raise InputError(f"token ids must be 0 to {len(self) - 1}")

    def at(self, ids: Sequence[int], place: int) -> str:
        """The text of the span that the token at `place` is in."""
        return next(span.text for span in self.spans(ids) if _holds(span, place))
