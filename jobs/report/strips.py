"""How a token is written out, so that every character of it is seen."""

from __future__ import annotations

from jobs.terminal.strips import HIDDEN, translated

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
