"""Token strips: a stretch of text, each token shaded by one feature's activation there.

Blue is positive, red negative; the shade is |activation| / maximum. Two forms: rich text for terminals, HTML
for pages, in which everything that came from a corpus is escaped. In both a space is `·`, a newline `↩`, a
tab `→`, and the firing token stands between bars. Shapes: T tokens shown, Z activations of the feature.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from rich.style import Style
from rich.text import Text

from pipeline.store.records.vocabulary import shown as joined_spans
from schemas.sentences import visible
from schemas.values import F32, U64

if TYPE_CHECKING:
    from pipeline.store import FeatureStore

BEFORE, AFTER = 30, 2
"""Tokens shown before and after the firing one."""

BLUE, RED = (0, 114, 178), (213, 60, 0)
"""Of positive and of negative activations: two colours that colour-blind people can distinguish."""

DEEPEST = 70
"""Percent of colour at the maximum: black on white and white on black stay readable on it."""

_CONTROLS = {n: chr(0x2400 + n) for n in range(32)} | {127: "\u2421"}
HIDDEN = (
    *(*range(0x80, 0xA0), 0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x2028, 0x202F)),
    *(*range(0x2060, 0x206A), *range(0xFE00, 0xFE10), 0xFEFF, *range(0xE0000, 0xE1000)),
)
"""Characters besides the ASCII controls that are not seen, or that turn the text around (bidirectional)."""
_SEEN = {ord(" "): "·", ord("\n"): "↩", ord("\r"): "↩", ord("\t"): "→"}
MARKS: dict[int, str] = _CONTROLS | dict.fromkeys(HIDDEN, "\ufffd") | _SEEN
"""What stands for characters that cannot be seen, or that would steer a terminal or turn the text around."""

_EMOJI = "[\u203c-\u3299\ufe0f\U0001f000-\U0001faff]"
_IN_EMOJI = re.compile(f"((?<={_EMOJI})[\u200d\ufe0f]|(?<=[0-9#*])\ufe0f(?=\u20e3))")


@dataclass(frozen=True)
class Strip:
    """Tokens as they stand one after another: their texts, activations float32 [T], and which one fires.

    Tokens that share a character are one of the T, with the activation of largest magnitude.
    """

    pieces: Sequence[str]
    values: F32
    firing: int | None = None


def shown(piece: str) -> str:
    """A token's text with every character visible."""
    return translated(piece, MARKS)


def translated(text: str, marks: Mapping[int, str]) -> str:
    """The text with marks for some characters, but for those that join emoji, or choose their look."""
    # split keeps what it splits at, at odd places: the joiners, which stay as they are
    parts = _IN_EMOJI.split(text)
    return "".join(part if n % 2 else part.translate(marks) for n, part in enumerate(parts))


def activations_in(rows: U64, values: F32, first: int, n: int) -> F32:
    """The feature's activation in rows first .. first + n - 1, float32 [n], 0 where it does not fire.

    `rows` uint64 [Z], ascending, and `values` [Z] are all it has (`FeatureStore.rows_of`).
    """
    activations = np.zeros(n, np.float32)
    # rows ascend, so those of the stretch lie between two places
    place = slice(*np.searchsorted(rows, np.array([first, first + n], np.uint64)))
    activations[(rows[place] - np.uint64(first)).astype(np.int64)] = values[place]
    return activations


def strips_of(
    store: FeatureStore, described: pl.DataFrame, rows: U64, values: F32, *, averaged: bool = False
) -> list[Strip]:
    """A strip of each of some rows, as `FeatureStore.contexts` or `describe_rows` returns them.

    `rows` and `values` are those of the feature, as in `activations_in`. `averaged`: the feature reads the
    mean of a context, so it fires on none of its tokens.
    """
    columns = ("row", "position", "first_position", "token_ids")
    strips = []
    for row, position, first, ids in store.whole_characters(described).select(columns).iter_rows():
        near = activations_in(rows, values, row - position + first, len(ids))
        firing = None if averaged else position - first
        strips.append(strip_of(store, ids, np.zeros_like(near) if averaged else near, firing))
    return strips


def strip_of(store: FeatureStore, ids: Sequence[int], values: F32, firing: int | None) -> Strip:
    """The strip of tokens that follow one another, with the activation of each, float32 [T]."""
    return Strip(*joined_spans(store.vocabulary.spans(list(ids)), values, firing))


def strongest_in(values: Iterable[F32]) -> float:
    """Largest |activation| of some strips or rows: what full shade stands for by default."""
    return max((float(np.abs(part).max(initial=0)) for part in values), default=0.0)


def text_strip(strip: Strip, maximum: float, *, shaded: bool = True) -> Text:
    """The strip for a terminal; without `shaded` only the firing token stands out."""
    text = Text()
    for place, (piece, value) in enumerate(zip(strip.pieces, strip.values.tolist(), strict=True)):
        style = Style()
        if shaded and value:
            # A terminal has no see-through colours and may be light or dark: shades lie on white, with ink.
            share = 0.2 + 0.8 * _share(value, maximum)
            red, green, blue = (round(255 + (part - 255) * share) for part in (BLUE if value > 0 else RED))
            ink = "white" if share > 0.6 else "black"
            style = Style(color=ink, bgcolor=f"#{red:02x}{green:02x}{blue:02x}")
        if place == strip.firing:
            mark = Style(bold=True, underline=True) if shaded else Style(bold=True, reverse=True)
            text.append(f"|{shown(piece)}|", style + mark)
        else:
            text.append(shown(piece), style)
    return text


def _share(value: float, maximum: float) -> float:
    """How much of the shade an activation has, 0 to 1."""
    return min(abs(value) / maximum, 1.0) if maximum > 0 else float(value != 0)


def html_strip(
    pieces: Sequence[str], values: Sequence[float], maximum: float, firing: int | None = None
) -> str:
    """One strip as a `<div class="strip">`, every text escaped; `STRIP_CSS` goes with it.

    `values` [T] are the feature's activations at the tokens; a token in which it fires has its value as
    title, and a shade that is full from `maximum` on.
    """
    tokens = []
    for place, (piece, value) in enumerate(zip(pieces, values, strict=True)):
        text = escape(shown(piece))
        if place == firing:
            text = f"<b>|{text}|</b>"
        if value or place == firing:
            colour = BLUE if value > 0 else RED
            shade = f"{colour[0]} {colour[1]} {colour[2]}/{DEEPEST * _share(value, maximum):.0f}%"
            tokens.append(f'<span style="background:rgb({shade})" title="{value:.6g}">{text}</span>')
        else:
            tokens.append(f"<span>{text}</span>")
    return f'<div class="strip">{"".join(tokens)}</div>'


STRIP_CSS = """\
.strip { font: 14px/1.9 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.strip span { display: inline-block; border-radius: 3px; }
.strip b { font-weight: 700; }
"""

_PAGE_CSS = """\
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; }
p { margin: .9rem 0 .1rem; opacity: .75; font-size: .85rem; }
"""


def _safe(text: str) -> str:
    return escape(visible(text))


def html_page(title: str, note: str, strips: Iterable[tuple[str, Strip, float]]) -> str:
    """A page of its own, to be opened from disk: of each strip what stands above it, and its maximum."""
    parts = [
        f"<p>{_safe(above)}</p>\n{html_strip(strip.pieces, strip.values.tolist(), maximum, strip.firing)}"
        for above, strip, maximum in strips
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{_safe(title)}</title>\n<style>\n{_PAGE_CSS}{STRIP_CSS}</style>\n"
        f"<h1>{_safe(title)}</h1>\n<p>{_safe(note)}</p>\n" + "\n".join(parts) + "\n</html>\n"
    )
