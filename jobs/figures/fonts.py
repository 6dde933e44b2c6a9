"""Fonts of other scripts: a Korean one where the machine has it, and text as far as it can be drawn."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from matplotlib import font_manager, rcParams

PLAIN = "DejaVu Sans"
"""Comes with matplotlib."""

KOREAN = (
    "NanumGothic",
    "NanumBarunGothic",
    "NanumSquare",
    "Noto Sans CJK KR",
    "Noto Sans KR",
    "Noto Sans CJK JP",  # the families of Noto CJK have all glyphs, and matplotlib sees one of them
    "Noto Serif CJK KR",
    "Noto Serif CJK JP",
    "Malgun Gothic",
    "AppleGothic",
    "Apple SD Gothic Neo",
    "UnDotum",
    "Baekmuk Gulim",
)
"""Families with Hangul, the first found is taken."""

ABSENT = (
    "no Korean font is found (NanumGothic, Noto Sans CJK KR …), so titles and labels are English alone: "
    "install one, such as the package fonts-nanum"
)

MISSING = "□"


@cache
def korean_font() -> str | None:
    """Family of a font with Hangul that matplotlib finds on this machine, None where there is none."""
    there = {font.name for font in font_manager.fontManager.ttflist}
    return next((family for family in KOREAN if family in there), None)


def families() -> list[str]:
    """Fonts to draw with: glyphs that the first lacks are taken from the next."""
    korean = korean_font()
    return [PLAIN, korean] if korean else [PLAIN]


def with_fonts(style: Any) -> Any:
    """The style, with all of `families`; that a family has no bold face is not worth a warning."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    return style | {"font.family": families()}


def bilingual(english: str, korean: str) -> str:
    """Both, where figures are drawn with a Korean font."""
    return f"{english} · {korean}" if korean_font() in _drawn_with() else english


def legible(text: str) -> str:
    """The text, what the fonts in use can not draw replaced; line ends and tabs are made to be seen."""
    text = text.translate({ord("\n"): "↩", ord("\r"): "↩", ord("\t"): "→"})
    return "".join(letter if _is_drawn(letter, _drawn_with()) else MISSING for letter in text)


def _drawn_with() -> tuple[str, ...]:
    return tuple(rcParams["font.family"])


@cache
def _is_drawn(letter: str, names: tuple[str, ...]) -> bool:
    fonts = (font_manager.get_font(font_manager.findfont(name)) for name in names)
    return any(font.get_char_index(ord(letter)) for font in fonts)
