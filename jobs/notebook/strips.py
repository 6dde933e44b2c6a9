"""Texts shaded by a feature, as a notebook shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from jobs.terminal.strips import Strip, html_strip, text_strip
from schemas.sentences import visible

_STYLE = 'style="font:13px/1.9 ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere"'
"""Within the element, because code hosts leave out style sheets; there the bars mark the firing token."""


@dataclass(frozen=True)
class Strips:
    """Stretches of text, each token shaded by a feature's activation: blue positive, red negative.

    `heads`: what stands above each; `maxima`: from where on its shade is full.
    """

    title: str
    heads: Sequence[str]
    strips: Sequence[Strip]
    maxima: Sequence[float]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.strips)

    def __repr__(self) -> str:
        lines = [visible(self.title)]
        for head, strip in zip(self.heads, self.strips, strict=True):
            lines += [f"  {visible(head)}", f"    {text_strip(strip, 1.0, shaded=False).plain}"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = [f"<p>{escape(visible(self.title))}</p>"]
        for head, strip, maximum in zip(self.heads, self.strips, self.maxima, strict=True):
            parts.append(f"<small>{escape(visible(head))}</small>")
            parts.append(html_strip(strip.pieces, strip.values.tolist(), maximum, strip.firing))
        return f"<div {_STYLE}>{''.join(parts)}</div>"
