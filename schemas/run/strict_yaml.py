"""YAML as users write it: 1.2's core scalars, unique keys, no tags, and limits on what one file may hold.

YAML 1.1, which PyYAML reads by itself, takes `yes` for true, `1:30:00` for 5,400, `010` for 8 and
`2024-02-30` for a date. Here `true` and `false` alone are booleans, and what looks like neither a number, a
boolean nor null is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from schemas.errors import InputError
from schemas.sentences import shown

MOST_BYTES = 16 << 20
"""Of a file."""
MOST_NODES = 1 << 19
"""Keys, values and lists of a file, an alias counted as what it stands for: three for each feature of the
largest dictionary, and more than any run file needs."""
MOST_LEVELS = 256
"""Lists and mappings inside each other."""
MOST_DIGITS = 100
"""Of a whole number; how large it may be, its key says."""

NULLS = {"", "~", "null", "Null", "NULL"}
BOOLEANS = {name: name.lower() == "true" for name in ("true", "True", "TRUE", "false", "False", "FALSE")}
INTEGER = re.compile(r"[-+]?[0-9]+")
HEXADECIMAL, OCTAL = re.compile(r"0x([0-9a-fA-F]+)"), re.compile(r"0o([0-7]+)")
FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""For its parser alone; what the events mean is decided here."""


def read_yaml(path: Path) -> Any:
    """The content of a file.

    InputError for what is not UTF-8, not YAML, too large or not taken; OSError as it comes.
    """
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise InputError(
            f"{path} has more than {MOST_BYTES >> 20} MB, too large for a file written by a person"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not YAML: it is not UTF-8 ({error.reason} at byte {error.start})"
        ) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The one document of a text of YAML, as dict, list, str, int, float, bool and None.

    InputError, with `where` and the line, for what it cannot be.
    """
    try:
        return _Document(text).content()
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}," if error.problem_mark else ""
        problem = "; ".join(part for part in (error.context, error.problem) if part)
        raise InputError(f"{where}{line} is not YAML: {problem}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    except _Refused as error:
        raise InputError(f"{where}, line {error.line}: {error}") from None


def dump_yaml(content: Any, *, flow: bool | None = False, width: float = 80) -> str:
    """YAML that is read as `content` by `read_yaml`, and by readers of YAML 1.1; `flow` as PyYAML's
    default_flow_style, `width` the columns after which it breaks lines.
    """
    return yaml.dump(
        content, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, allow_unicode=True, width=width
    )


class _Refused(Exception):  # noqa: N818 - becomes an InputError
    """What is YAML, but not taken; with the line, from 1."""

    def __init__(self, message: str, event: Any) -> None:
        super().__init__(message)
        self.line = event.start_mark.line + 1


class _Document:
    """Composes values from the parser's events, and counts them."""

    def __init__(self, text: str) -> None:
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=LOADER))
        self._anchors: dict[str, tuple[Any, int] | None] = {}
        """Anchor -> value and its nodes; None while the value is not complete."""
        self._nodes = 0

    def content(self) -> Any:
        """The document's value; None of an empty text."""
        next(self._events)  # the stream begins
        event = next(self._events)
        if isinstance(event, yaml.StreamEndEvent):
            return None
        if event.version not in (None, (1, 2)):
            raise _Refused("it is read as YAML 1.2: leave the %YAML directive out", event)
        value = self._value(next(self._events), 0)
        next(self._events)  # the document ends
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise _Refused("a second document begins, but only one is read: remove what follows '---'", event)
        return value

    def _value(self, event: Any, level: int) -> Any:
        """The value that begins with `event`, inside of `level` others."""
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.tag not in (None, "!"):
            name = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise _Refused(
                f"the tag {shown(name)[1:-1]} is not read: leave it out, and write text in quotes", event
            )
        if level > MOST_LEVELS:
            raise _Refused(f"more than {MOST_LEVELS} lists and mappings inside each other", event)
        if event.anchor is not None:
            self._anchors[event.anchor] = None  # until it is complete an alias to it would lie in itself
        before = self._nodes
        self._count(1, event)
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event) if event.implicit[0] else event.value
        elif isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(level)
        else:
            value = []
            while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
                value.append(self._value(inner, level + 1))
        if event.anchor is not None:
            self._anchors[event.anchor] = value, self._nodes - before
        return value

    def _mapping(self, level: int) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        lines: dict[Any, int] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, level)
            if key in values:
                raise _Refused(
                    f"the key {shown(key)} is given twice, first in line {lines[key]}: keep one of them",
                    event,
                )
            lines[key] = event.start_mark.line + 1
            values[key] = self._value(next(self._events), level + 1)
        return values

    def _key(self, event: Any, level: int) -> Any:
        key = self._value(event, level + 1)
        if isinstance(key, dict | list):
            raise _Refused("a key is a list or a mapping: keys are text", event)
        if key == "<<" and isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            raise _Refused("'<<' does not merge in YAML 1.2: write the keys out", event)
        return key

    def _alias(self, event: Any) -> Any:
        name = f"*{event.anchor}"
        if event.anchor not in self._anchors:
            raise _Refused(
                f"the alias {shown(name)[1:-1]} refers to nothing: its anchor must come first", event
            )
        anchored = self._anchors[event.anchor]
        if anchored is None:
            raise _Refused(f"the alias {shown(name)[1:-1]} refers to a value that contains it", event)
        self._count(anchored[1], event)
        return anchored[0]

    def _count(self, nodes: int, event: Any) -> None:
        self._nodes += nodes
        if self._nodes > MOST_NODES:
            raise _Refused(
                f"it holds more than {MOST_NODES:,} keys and values (an alias counts as what it refers to)",
                event,
            )


class _Dumper(yaml.SafeDumper):
    """Puts in quotes what either version would not read as text, and never writes an alias."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - as PyYAML calls it
        return True


for _pattern in (FLOAT, OCTAL):
    _Dumper.add_implicit_resolver(
        "tag:yaml.org,2002:core", re.compile(rf"^(?:{_pattern.pattern})$"), [*"-+.0123456789"]
    )


def _scalar(event: Any) -> Any:
    """A plain scalar, by the core schema of YAML 1.2."""
    text = event.value
    if text in NULLS:
        return None
    if text in BOOLEANS:
        return BOOLEANS[text]
    for pattern, base in ((HEXADECIMAL, 16), (OCTAL, 8), (INTEGER, 10)):
        if pattern.fullmatch(text):
            return _integer(event, base)
    return (
        float(text.lower().replace(".inf", "inf").replace(".nan", "nan")) if FLOAT.fullmatch(text) else text
    )


def _integer(event: Any, base: int) -> int:
    """A whole number; one with a leading zero means 8 to some and 10 to others."""
    digits = event.value.lstrip("+-")
    if base == 10 and digits[0] == "0" and len(digits) > 1:
        plain = digits.lstrip("0") or "0"
        raise _Refused(
            f"{shown(event.value)[1:-1]} begins with 0, which YAML 1.1 reads as octal and YAML 1.2 does not: "
            f"write {shown(plain)[1:-1]}, or 0o{shown(plain)[1:-1]} for octal, or put text in quotes",
            event,
        )
    if len(digits) > MOST_DIGITS:
        raise _Refused(f"{shown(event.value)[1:-1]} has {len(digits):,} digits: numbers have 64 bits", event)
    return int(event.value, base)
