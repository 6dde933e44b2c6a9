"""What holds for all figures of a command: the language of titles, what a row is, a study's target.

A figure is a function of a table; what it shows beyond the table's numbers is set around the drawing, as
matplotlib's own style is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, get_args

Language = Literal["en", "ko", "both"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
"""English; Korean where there is a translation; English and Korean side by side."""


@dataclass(frozen=True)
class Setting:
    """Of the figures of one site."""

    language: Language = "en"
    row: str = "token"
    """What a row of the store is: a token, an image, a prompt, a vector …"""
    target: tuple[float, float] | None = None
    """Share of zeros that the study of this corpus aims at."""
    names: Callable[[Sequence[int]], Mapping[int, str]] | None = None
    """What reads the names of some features, those that have any; None: numbers alone are shown."""
    missing: set[str] = field(default_factory=set)
    """Letters that no font of this machine has, of what was rendered so far."""


_SETTING: ContextVar[Setting] = ContextVar("setting")


def setting() -> Setting:
    """The one in force; tokens and English where none is set."""
    return _SETTING.get(Setting())


@contextmanager
def set_to(chosen: Setting) -> Iterator[Setting]:
    """What is drawn inside follows `chosen`."""
    token = _SETTING.set(chosen)
    try:
        yield chosen
    finally:
        _SETTING.reset(token)


def bilingual(english: str, korean: str, between: str = " · ") -> str:
    """The text in the language of the figures."""
    return {"en": english, "ko": korean, "both": f"{english}{between}{korean}"}[setting().language]
