"""What a sentence may hold of the outside: cut to a length, without secrets, every character visible."""

from __future__ import annotations

import re
import reprlib
from typing import Any

LONGEST_VALUE = 200
LONGEST_SENTENCE = 4_000
"""Characters; what is longer loses its middle."""
MOST_ERRORS = 5
"""Errors of one file that are printed; of the others their number."""
NOTE = "note: "
"""Begins a sentence that informs; others that a run prints warn."""

_STEERING = (
    *(n for n in range(0x20) if chr(n) not in "\t\n"),
    *range(0x7F, 0xA0),
    *(0x61C, 0x180E, 0x200B, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2060, 0x2070)),
    *(*range(0xD800, 0xE000), 0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080)),
)
"""Characters that steer a terminal, turn text around (bidirectional), are never seen, or are no text."""
_VISIBLE = {
    n: f"\\x{n:02x}" if n < 0x100 else f"\\u{n:04x}" if n < 0x10000 else f"\\U{n:08x}" for n in _STEERING
}
_IS_PLAIN = re.compile(r"[\n\t -~]*").fullmatch

_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)([^\s/@:]*:\S*@|[^\s/@:]+@)")
_CONTAINER = re.compile(r"(az|azure|adl|abfs|abfss)://", re.IGNORECASE)
"""URLs of these schemes have a container before the @: `abfss://container@account…`."""
_QUERY = re.compile(
    r"([?&;][^=&;\s]*(?:sig|token|secret|passw|pwd|key|credential|auth)[^=&;\s]*=)[^&;\s'\"]+", re.IGNORECASE
)


NO_SECRETS = (
    "holds a user, a password or a signature, which would be repeated in records and logs: leave it out; "
    "credentials come from the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, …)"
)


def several(n: int, what: str) -> str:
    """A count of things: 1 worker, 2 workers."""
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def visible(text: str) -> str:
    r"""The text with escapes, such as \x1b, for characters that would steer a terminal or are not seen.

    Line ends and tabs stay, and so does what letters are joined by, as in emoji.
    """
    return text if _IS_PLAIN(text) else text.translate(_VISIBLE)


def redacted(text: str) -> str:
    """The text with *** for the user and password of URLs, and for signatures and keys in their queries."""
    if "://" not in text and "=" not in text:
        return text
    return _QUERY.sub(r"\1***", _USER.sub(_without_user, text))


def _without_user(match: re.Match[str]) -> str:
    is_container = _CONTAINER.fullmatch(match[1]) and ":" not in match[2]
    return match[0] if is_container else f"{match[1]}***@"


def holds_secret(url: str) -> bool:
    """Whether a URL brings a user, a password or a signature along."""
    return redacted("".join(url.split())) != "".join(url.split())


def shorten(text: str, most: int = LONGEST_SENTENCE) -> str:
    """The text, of at most `most` characters: the middle of a longer one is cut out."""
    if len(text) <= most:
        return text
    head = (most - 1) * 3 // 4
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def shown(value: Any) -> str:
    """The value's repr, cut in depth and length and without secrets."""
    if isinstance(value, str) and "://" in value and holds_secret(value):
        value = redacted("".join(value.split()))  # a password may have spaces
    return shorten(redacted(_REPR.repr(value)), LONGEST_VALUE)


def joined(sentences: list[str], most: int = MOST_ERRORS) -> str:
    """The first of them, and how many more there are."""
    more = [f"and {len(sentences) - most:,} more"] if len(sentences) > most else []
    return "; ".join(sentences[:most] + more)


class _Repr(reprlib.Repr):
    """A tuple, which a list of a file becomes, is shown as a list; a number of any length is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxstring = 4, 8, 8, LONGEST_VALUE

    def repr_tuple(self, x: tuple[Any, ...], level: int) -> str:
        return self.repr_list(list(x), level)

    def repr_int(self, x: int, level: int) -> str:  # noqa: ARG002 - as reprlib calls it
        bits = x.bit_length()
        return repr(x) if bits <= 256 else f"a number of {bits:,} bits"


_REPR = _Repr()
