"""The texts around a site's stored examples, searched for words.

A text is read as UTF-8 bytes. Searched are windows of BEFORE tokens before and AFTER after each example of
EXAMPLE_KINDS. What lies in no window is not kept, so memory is some 40 bytes an example and the bytes of the
windows, those that overlap once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import polars as pl

from pipeline.store.reading.windows import AFTER, BEFORE, Windows
from pipeline.store.records.tokens import read_token_shard
from schemas.errors import InputError
from schemas.values import I64, TokenShard

if TYPE_CHECKING:
    from pipeline.store.feature_store import FeatureStore

EXAMPLE_KINDS = ("top", "top_document")
"""Kinds of examples that are searched: the strongest rows, and each document's strongest."""

_MOST_LETTERS = 1_000
_WORD = rb"0-9A-Za-z_\x80-\xff"


class _Texts(NamedTuple):
    """The windows of a shard: their joined bytes, and of each example where its window begins and ends."""

    data: bytes
    first: I64
    stop: I64


class ExampleTexts:
    """The windows of a site, read once; then `with_text` searches them any number of times."""

    def __init__(
        self, store: FeatureStore, site: str, advance: Callable[[int], None] = lambda _: None
    ) -> None:
        """`advance` counts shards. InputError where there is no table of examples, or rows have no text."""
        if not store.reads_tokens(site):
            raise InputError(f"site {site!r} does not read tokens, so its examples have no text")
        kept = pl.col("kind").is_in(EXAMPLE_KINDS)
        stored = store.scan_table(site, "examples").filter(kept).select("feature", "row", "activation")
        self._examples = stored.unique().sort("row", "feature").collect()
        self._searched = self._examples.group_by("feature").agg(searched=pl.len().cast(pl.Int64))
        self._texts = list[_Texts]()
        rows, data = self._examples["row"].to_numpy().astype(np.int64), store.vocabulary.data
        for record in store.committed(site):
            low, high = np.searchsorted(rows, [record.row_start, record.row_start + record.rows])
            if low < high:
                shard = read_token_shard(store.layout, store.lake, record, verify=False, inputs=False)
                self._texts.append(_windows(shard, data, rows[low:high] - record.row_start))
            advance(1)

    @property
    def n_examples(self) -> int:
        """Examples that are searched."""
        return self._examples.height

    def with_text(self, pattern: re.Pattern[bytes]) -> pl.DataFrame:
        """The features with a text in an example: `feature`, `examples`, `searched`, `share`.

        Then `activation` and `row` of the strongest example with the text.
        """
        has_text = [np.zeros(0, np.bool_)]
        for texts in self._texts:
            matches = [match.span() for match in pattern.finditer(texts.data)]
            spans = np.array(matches, np.int64).reshape(-1, 2)
            # of the matches that begin in a window or after it the first ends first, for they do not overlap
            place = np.searchsorted(spans[:, 0], texts.first)
            inside = place < len(spans)
            inside[inside] = spans[place[inside], 1] <= texts.stop[inside]
            has_text.append(inside)
        strongest = pl.col("activation").abs().arg_max()
        found = self._examples.filter(pl.Series(np.concatenate(has_text)))
        found = found.group_by("feature", maintain_order=True).agg(
            examples=pl.len().cast(pl.Int64),
            activation=pl.col("activation").get(strongest),
            row=pl.col("row").get(strongest),
        )
        found = found.join(self._searched, on="feature", maintain_order="left")
        share = (pl.col("examples") / pl.col("searched")).alias("share")
        return found.select("feature", "examples", "searched", share, "activation", "row")


def _windows(shard: TokenShard, data: list[bytes], rows: I64) -> _Texts:
    """The windows of some ascending rows; they are counted from the shard's first."""
    windows = Windows.around(rows, shard.context_ptr, BEFORE, AFTER)
    # Tokens that lie in a window, or next to one: there it is seen whether a word goes on. Where a window
    # begins there is one more, where it ends one less.
    depth = np.zeros(len(shard.token_ids) + 1, np.int64)
    np.add.at(depth, np.maximum(windows.first - 1, windows.begin), 1)
    np.add.at(depth, np.minimum(windows.stop + 1, windows.end), -1)
    kept = np.flatnonzero(np.cumsum(depth)[:-1])
    pieces = [data[token] for token in shard.token_ids[kept].tolist()]
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    # a line's end after each context, and where tokens are left out, so that no word goes on there
    context = np.searchsorted(shard.context_ptr, kept, side="right")
    is_cut = (np.diff(kept, append=-1) != 1) | (np.diff(context, append=-1) != 0)
    for place in np.flatnonzero(is_cut).tolist():
        pieces[place] += b"\n"
    ends = np.cumsum(lengths + is_cut)
    begins = np.append(0, ends[:-1])
    first, last = np.searchsorted(kept, windows.first), np.searchsorted(kept, windows.stop - 1)
    return _Texts(b"".join(pieces), begins[first], begins[last] + lengths[last])


def text_pattern(text: str) -> re.Pattern[bytes]:
    """What finds a text in UTF-8, in any case and with any blanks between its words; InputError for none.

    An end of the text that is a letter or digit of ASCII is an end of a word.
    """
    words = text.split()
    if not words:
        raise InputError(f"--text {text!r} has no word: type one")
    if len(text) > _MOST_LETTERS:
        raise InputError(f"--text has {len(text):,} letters: type {_MOST_LETTERS:,} at most")
    try:
        whole = rb"\s+".join(b"".join(map(_letter, word)) for word in words)
    except UnicodeEncodeError:
        raise InputError(f"--text {text!r} is not Unicode: type it in UTF-8") from None
    first, last = words[0][0], words[-1][-1]
    # Words of other scripts may take endings, as Korean ones do, so they may go on.
    before = rb"(?<![%s])" % _WORD if first.isascii() and first.isalnum() else b""
    after = rb"(?![%s])" % _WORD if last.isascii() and last.isalnum() else b""
    return re.compile(before + whole + after)


def _letter(letter: str) -> bytes:
    """A letter in either case."""
    cases = list(dict.fromkeys(case.encode() for case in (letter, letter.lower(), letter.upper())))
    if len(cases) == 1:
        return re.escape(cases[0])
    if all(len(case) == 1 for case in cases):
        return b"[" + b"".join(cases) + b"]"
    return b"(?:" + b"|".join(map(re.escape, cases)) + b")"
