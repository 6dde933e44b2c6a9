"""Font files for tests, a square for each letter: what is drawn does not hang on the machine's fonts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

SOME_HANGUL = "한글특징문맥활성화군집별희소성비율빈도개수로그값두배구간당이아닌선택된의한국어민주당"


def write_font(path: Path, family: str, letters: Iterable[str], style: str = "Regular") -> Path:
    """A TrueType font that has these letters and no other."""
    names = {ord(letter): f"u{ord(letter):04X}" for letter in letters}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    pen = TTGlyphPen(None)
    for place, point in enumerate([(100, 0), (100, 700), (800, 700), (800, 0)]):
        (pen.lineTo if place else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    builder.setupGlyf(dict.fromkeys(builder.font.getGlyphOrder(), square))
    builder.setupHorizontalMetrics(dict.fromkeys(builder.font.getGlyphOrder(), (900, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": style})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def hangul_font(folder: Path) -> Path:
    """A font of what figures and tests write in Hangul, under a name that no machine has."""
    return write_font(folder / "hangul.ttf", "Squares of Hangul", SOME_HANGUL)
