"""Fonts by what they cover: each text of a figure is drawn with fonts of this machine that have its letters.

The fonts are looked for when letters need them, not in the list that matplotlib keeps from its first start.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import font_manager, get_data_path
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from jobs.terminal.strips import MARKS
from schemas.values import U32

PLAIN = "DejaVu Sans"
"""Comes with matplotlib."""

PREFERRED = ("NanumGothic", "NanumBarunGothic", "Noto Sans", "Malgun Gothic", "Apple SD Gothic Neo")
"""Of fonts that cover as much, those whose family begins so come first, in this order."""

STAND_INS = ("lastresort", "last resort", ".lastresort", "adobeblank", "adobe blank")
"""Families that have a box, or nothing, for every letter."""

SCRIPTS = {
    "HANGUL": ("Hangul", "fonts-nanum"),
    "CJK": ("Chinese characters", "fonts-noto-cjk"),
    "HIRAGANA": ("Hiragana", "fonts-noto-cjk"),
    "KATAKANA": ("Katakana", "fonts-noto-cjk"),
    "symbols": ("symbols and emoji", "fonts-symbola"),
    "private": ("private use", "the font in which it was written"),
}
"""Scripts by the first word of their characters' names, and a Debian package that has them."""
OTHERS = "fonts-noto-core"
"""The package for other scripts."""

MOST_LETTERS = 8
"""Of a script, named in a note."""

_SCALABLE, _COLOUR = 1 << 0, 1 << 14
"""Bits of FreeType's face flags."""

_UNSEEN = (0x200C, 0x200D, *range(0xFE00, 0xFE10))
"""Joiners and variation selectors: they stay in a text, and need no glyph."""

_MARKS = {
    code: mark if mark in "↩→" else "\ufffd"  # PLAIN has no pictures of other controls
    for code, mark in MARKS.items()
    if code not in (ord(" "), *_UNSEEN)
}


class Face(NamedTuple):
    """A font file: its family, whether it is a plain upright face, and its code points uint32, ascending."""

    path: str
    family: str
    is_plain: bool
    letters: U32

    def covers(self, codes: U32) -> set[str]:
        """Those of the code points that it has."""
        return set(map(chr, codes[np.isin(codes, self.letters)].tolist()))


def legible(text: str) -> str:
    """A text of the data in one line: composed, line ends, tabs and other characters not seen are marks."""
    return unicodedata.normalize("NFC", text).translate(_MARKS)


def cut(text: str, longest: int) -> str:
    """A text of at most `longest` characters, an ellipsis in the place of what is too much."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def use_fonts(figure: Figure) -> set[str]:
    """Give every text of the figure fonts that have its letters; the letters that no font here has."""
    for axes in figure.get_axes():
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_ticklabels(which="both")  # their texts are made on this call
    texts = figure.findobj(Text)
    letters = frozenset("".join(text.get_text() for text in texts)) - {"\n"}
    families, missing = families_for(letters)
    if len(families) > 1:
        for text in texts:
            text.set_fontfamily(families)
    return missing


def families_for(letters: Collection[str]) -> tuple[list[str], set[str]]:
    """Families to draw with, PLAIN first: what one lacks the next has; and what none of them has."""
    left = set(letters) - set(map(chr, _UNSEEN))
    left -= _plain().covers(_codes(left))
    families = [PLAIN]
    if left:
        for face in _chosen(frozenset(left), tuple(font_files())):
            families.append(face.family)
            left -= face.covers(_codes(left))
    return families, left


def font_files() -> list[str]:
    """The font files of this machine, and those that a package gave to matplotlib."""
    known = (entry.fname for entry in font_manager.fontManager.ttflist)
    return sorted({*font_manager.findSystemFonts(), *known})


@cache
def _chosen(letters: frozenset[str], files: tuple[str, ...]) -> list[Face]:
    """As few faces as cover what can be covered, each known to matplotlib by its family."""
    faces = [face for path in files if (face := _face(path)) is not None]
    left, chosen = _codes(letters), list[Face]()
    while len(left):
        best = min(faces, key=lambda face: (-len(face.covers(left)), *_preference(face)), default=None)
        if best is None or not best.covers(left):
            break
        chosen.append(best)
        left = left[~np.isin(left, best.letters)]
    known = {entry.fname for entry in font_manager.fontManager.ttflist}
    for face in faces:
        if face.path not in known and any(face.family == best.family for best in chosen):  # bold faces too
            font_manager.fontManager.addfont(face.path)
    return chosen


def _preference(face: Face) -> tuple[int, bool, str]:
    """What decides between fonts that cover as much: the least."""
    place = next((n for n, name in enumerate(PREFERRED) if face.family.startswith(name)), len(PREFERRED))
    return place, not face.is_plain, face.path


@cache
def _face(path: str) -> Face | None:
    """A font file; None where it cannot be read, has no outlines, or is a stand-in for all letters."""
    if Path(path).is_relative_to(get_data_path()):  # PLAIN is; the others are of formulas
        return None
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return None
    flags: Any = font.face_flags
    bits = int(getattr(flags, "value", flags))  # a plain number before matplotlib 3.10
    family = font.family_name
    if not bits & _SCALABLE or bits & _COLOUR or family.lower().startswith(STAND_INS):
        return None
    is_plain = font.style_name.lower() in ("regular", "book", "normal", "medium")
    letters = np.fromiter(sorted(font.get_charmap()), np.uint32)
    return Face(path, family, is_plain, letters)


@cache
def _plain() -> Face:
    path = font_manager.findfont(PLAIN)
    return Face(path, PLAIN, True, np.fromiter(sorted(FT2Font(path).get_charmap()), np.uint32))


def _codes(letters: Collection[str]) -> U32:
    return np.fromiter(sorted(map(ord, letters)), np.uint32)


def scripts_of(letters: Collection[str]) -> dict[str, list[str]]:
    """Keys of SCRIPTS, or first words of characters' names, each with its letters."""
    by_script: dict[str, list[str]] = {}
    for letter in sorted(letters):
        category, script = unicodedata.category(letter), unicodedata.name(letter, "symbol").split()[0]
        if category == "Co":
            script = "private"
        elif script not in SCRIPTS and category[0] not in "LMN":  # no letter, mark or number
            script = "symbols"
        by_script.setdefault(script, []).append(letter)
    return by_script


def name_of(script: str) -> str:
    """What a script is called."""
    return SCRIPTS.get(script, (script.capitalize(),))[0]


def missing_note(letters: Collection[str]) -> str:
    """Which letters no font here has, of which scripts, and packages that have them."""
    scripts = scripts_of(letters)
    named = [
        f"{' '.join(chars[:MOST_LETTERS])}{' …' if len(chars) > MOST_LETTERS else ''} ({name_of(script)})"
        for script, chars in scripts.items()
    ]
    packages = dict.fromkeys(SCRIPTS.get(script, ("", OTHERS))[1] for script in scripts)
    return (
        f"no font of this machine has {', '.join(named)}, so .png files show boxes there: install one that "
        f"does, such as {', '.join(packages)} (packages of Debian and Ubuntu), and draw again"
    )
