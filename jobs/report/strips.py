"""Tokens as HTML: how a token is written out, and strips of tokens shaded by their activation."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from jobs.terminal.strips import HIDDEN, translated

LEVELS = 9
"""Shades of a strip: classes p1 to p9 of positive activations, n1 to n9 of negative ones."""

_VISIBLE = {code: f"⟨U+{code:04X}⟩" for code in (*range(0x20), 0x7F, *HIDDEN)}
_VISIBLE |= {ord("\n"): "↩", ord("\r"): "↩", ord("\t"): "→"}


def visible(text: str) -> str:
    """The text with marks for line ends and tabs, and numbers of other characters that cannot be seen."""
    if text.isprintable() and text.isascii():
        return text
    return translated(text, _VISIBLE)


def standalone(text: str) -> str:
    """A token that stands by itself: its spaces are seen too."""
    return visible(text).replace(" ", "·") or "⟨empty⟩"


def strip(pieces: Sequence[str], values: Sequence[float], firing: int | None, most: float) -> Markup:
    """Tokens, shaded by |activation| / `most`; the one at `firing` is marked.

    `pieces` is HTML of each token (see `Work.shown`), `values` its activation; tokens that are active say
    theirs when pointed at.
    """
    parts = list(pieces)
    for place, value in enumerate(values):
        if value or place == firing:
            # Even the weakest activation gets a shade; 0 is left to the firing token of a random row.
            level = min(LEVELS, max(1, round(LEVELS * abs(value) / most))) if value and most else 0
            tag, shade = "mark" if place == firing else "b", f"{'n' if value < 0 else 'p'}{level}"
            parts[place] = f'<{tag} class="{shade}" title="{value:.4g}">{parts[place]}</{tag}>'
    return Markup("".join(parts))  # noqa: S704 - made of escaped pieces
