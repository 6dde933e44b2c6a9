"""Which features: those that fire on a token, in whose examples a text stands, that fit conditions.

Each answer is a frame with a row per feature, best first. `on_token` reads the table `token_features`,
`near_text` the table `examples` and the tokens of all shards that hold one, `features_where` columns of the
tables with a row per feature (`pipeline.store.reading.feature_columns`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from pipeline.store.reading.conditions import nearest
from pipeline.store.reading.feature_columns import columns_of, feature_values, features_where, require_known
from pipeline.store.reading.windows import AFTER, BEFORE, Windows
from pipeline.store.records.tokens import read_token_shard
from schemas.errors import InputError
from schemas.records import ShardRecord
from schemas.values import I64, Bool, TokenShard

if TYPE_CHECKING:
    from pipeline.store.feature_store import FeatureStore

BY_TOKEN = ("f1", "precision", "recall", "mean_active", "n_active")
BY_TEXT = ("examples", "share", "activation")
BY_FEATURE = "frequency"
"""What features that fit a condition are sorted by, unless another column is given."""

EXAMPLE_KINDS = ("top", "top_document")
"""Kinds of examples that `near_text` searches: the strongest rows, and each document's strongest."""

_MOST_LETTERS = 1_000
_WORD = rb"0-9A-Za-z_\x80-\xff"


def token_ids(store: FeatureStore, text: str) -> list[int]:
    """The tokens that put exactly this text into a text; · at either end may stand for a space."""
    texts = store.vocabulary.texts
    matches = [token for token, known in enumerate(texts) if known == text]
    if not matches and text.strip("·") != text:
        matches = [token for token, known in enumerate(texts) if known == text.replace("·", " ")]
    return matches


def nearest_tokens(store: FeatureStore, site: str, text: str) -> list[str]:
    """The few texts of tokens counted at the site that are most alike; the same word with a space first."""
    texts = store.vocabulary.texts
    counted = store.scan_table(site, "token_counts").select("token_id").collect().to_series()
    known = [texts[token] for token in counted]
    stripped = text.strip().casefold()
    same = [each for each in known if each != text and each.strip().casefold() == stripped][:3]
    return same or [each for each in nearest(text, known) if each != text]


def on_token(
    store: FeatureStore, site: str, tokens: Sequence[int], where: Sequence[str] = (), by: str = "f1"
) -> pl.DataFrame:
    """The features that fire on one of some tokens, sorted by one of BY_TOKEN.

    Columns: token_id i32, feature u32, n_active i64 (rows of that token in which it fires), recall, precision
    and f1 (their harmonic mean 2 p r / (p + r)), mean_active f64. InputError where the table is not there.
    """
    require_order(by, BY_TOKEN)
    table = store.scan_table(site, "token_features").filter(pl.col("token_id").is_in(list(tokens)))
    p, r = pl.col("precision"), pl.col("recall")
    found = table.with_columns(f1=2 * p * r / (p + r)).collect()
    found = _only(store, site, found, where).select(*found.columns[:5], "f1", "mean_active")
    return found.sort(_size(by), "feature", "token_id", descending=[True, False, False])


def near_text(
    store: FeatureStore,
    site: str,
    text: str,
    where: Sequence[str] = (),
    by: str = "examples",
    advance: Callable[[int], None] = lambda _: None,
) -> pl.DataFrame:
    """The features in whose stored examples a text stands, sorted by one of BY_TEXT.

    Searched are the windows of BEFORE tokens before and AFTER after each example of EXAMPLE_KINDS, whatever
    their case; an end of the text that is a letter or digit of ASCII is an end of a word. Columns: feature
    u32, examples i64 (with the text), searched i64, share f64, activation f32 and row u64 of the strongest.
    `advance` counts shards that are done. InputError where there is no table of examples, or no text.
    """
    require_order(by, BY_TEXT)
    if not store.reads_tokens(site):
        raise InputError(f"site {site!r} does not read tokens, so its examples have no text")
    pattern = text_pattern(text)
    kept = pl.col("kind").is_in(EXAMPLE_KINDS)
    stored = store.scan_table(site, "examples").filter(kept).select("feature", "row", "activation")
    examples = _only(store, site, stored.unique().collect(), where).sort("row", "feature")
    rows, data = examples["row"].to_numpy().astype(np.int64), store.vocabulary.data
    has_text = np.zeros(len(rows), np.bool_)
    for record in store.committed(site):
        low, high = np.searchsorted(rows, [record.row_start, record.row_start + record.rows])
        if low < high:
            shard = _tokens(store, record)
            has_text[low:high] = _in_windows(shard, data, pattern, rows[low:high] - record.row_start)
        advance(1)
    grouped = examples.with_columns(has_text=pl.Series(has_text)).group_by("feature", maintain_order=True)
    fits = pl.col("has_text")
    strongest = pl.col("activation").filter(fits).abs().arg_max()
    found = grouped.agg(
        examples=fits.sum().cast(pl.Int64),
        searched=pl.len().cast(pl.Int64),
        share=fits.mean(),
        activation=pl.col("activation").filter(fits).get(strongest),
        row=pl.col("row").filter(fits).get(strongest),
    ).filter(pl.col("examples") > 0)
    order = [_size(name) for name in dict.fromkeys((by, "examples", "share"))]
    return found.sort(*order, "feature", descending=[True] * len(order) + [False])


def by_columns(store: FeatureStore, site: str, where: Sequence[str], by: str = BY_FEATURE) -> pl.DataFrame:
    """The features that fit all conditions, sorted by a column from the largest; null comes last.

    Columns: feature, the one sorted by, and those that the conditions name.
    """
    columns = columns_of(store, site)
    if by not in columns:
        require_known(by, columns, f"--by {by}")
    name, _ = columns.resolve(by, f"--by {by}")
    found = features_where(store, site, where, [name])
    found = (
        found.select("feature", *dict.fromkeys((name, *found.columns[1:]))) if name != "feature" else found
    )
    return found.sort(name, "feature", descending=[name != "feature", False], nulls_last=True)


def with_names(store: FeatureStore, site: str, found: pl.DataFrame) -> pl.DataFrame:
    """The features with the text of the token that each fires on most often, `top_token`, if it is known."""
    if not store.has_table(site, "profile") or not store.reads_tokens(site):
        return found
    tokens = feature_values(store, site, ["top_token"]).collect()
    texts = store.vocabulary.texts
    names = found.select("feature").join(tokens, on="feature", how="left", maintain_order="left")["top_token"]
    named = [None if token is None else texts[token] for token in names]
    return found.with_columns(pl.Series("top_token", named, pl.String))


def require_order(by: str, known: Sequence[str]) -> None:
    """InputError where features cannot be sorted by that."""
    if by not in known:
        raise InputError(f"--by {by!r} is not one of {', '.join(known)}")


def text_pattern(text: str) -> re.Pattern[bytes]:
    """What finds a text in UTF-8, in any case and with any blanks between its words; InputError for none."""
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
    cases = dict.fromkeys((letter, letter.lower(), letter.upper()))
    return b"(?:" + b"|".join(re.escape(case.encode()) for case in cases) + b")"


def _tokens(store: FeatureStore, record: ShardRecord) -> TokenShard:
    return read_token_shard(store.layout, store.lake, record, verify=False, inputs=False)


def _in_windows(shard: TokenShard, data: Sequence[bytes], pattern: re.Pattern[bytes], rows: I64) -> Bool:
    """Whether the pattern is found in the window of each row [Q]; rows are counted from the shard's first."""
    pieces = [data[token] for token in shard.token_ids.tolist()]
    # a line's end after each context, so that no word goes on in the next one
    for end in shard.context_ptr[1:].tolist():
        if end:
            pieces[end - 1] += b"\n"
    ends = np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)))
    matches = [match.span() for match in pattern.finditer(b"".join(pieces))]
    begins, stops = (
        np.array(side, np.int64) for side in (zip(*matches, strict=True) if matches else ((), ()))
    )
    # rows of the first and of the last byte of each match; both ascend, for matches do not overlap
    first, last = np.searchsorted(ends, begins, side="right"), np.searchsorted(ends, stops - 1, side="right")
    windows = Windows.around(rows, shard.context_ptr, BEFORE, AFTER)
    # of the matches that begin in a window or after it the first ends first
    place = np.searchsorted(first, windows.first)
    inside = place < len(first)
    inside[inside] = last[place[inside]] < windows.stop[inside]
    return inside


def _only(store: FeatureStore, site: str, found: pl.DataFrame, where: Sequence[str]) -> pl.DataFrame:
    """Those rows whose feature fits the conditions."""
    if not where:
        return found
    fits = features_where(store, site, where)["feature"]
    return found.filter(pl.col("feature").is_in(fits.implode()))


def _size(by: str) -> pl.Expr:
    """Activations are sorted by magnitude."""
    return pl.col(by).abs() if by in ("mean_active", "activation") else pl.col(by)
