"""Logs of driver and workers: one JSON object a line on standard error.

Each has time, level and event; a worker's has its node too and, where there is one, the shard. Nothing is
written until `start` is called in a process.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from schemas.sentences import redacted

LOGGER = logging.getLogger("latentlake")
LOGGER.addHandler(logging.NullHandler())

_ABOUT: ContextVar[Mapping[str, Any] | None] = ContextVar("about", default=None)
"""Fields that every line of now carries."""


class JsonLines(logging.Formatter):
    """A record as one line of JSON; a traceback goes into `error`."""

    def __init__(self, always: Mapping[str, Any]) -> None:
        super().__init__()
        self._always = dict(always)

    def format(self, record: logging.LogRecord) -> str:
        """The line without its newline; what JSON does not know is written as text."""
        content = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            **self._always,
            **(_ABOUT.get() or {}),
            **getattr(record, "fields", {}),
            "event": record.getMessage(),
        }
        if record.exc_info:
            content["error"] = self.formatException(record.exc_info)
        return redacted(json.dumps(content, default=str))


def start(stream: TextIO | None = None, level: int = logging.INFO, **always: Any) -> None:
    """Write this process's lines to `stream` (default: standard error), each with the fields `always`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(always))
    LOGGER.handlers = [handler]
    LOGGER.setLevel(level)
    LOGGER.propagate = False


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """Lines written inside the block carry `fields`, such as the shard."""
    token = _ABOUT.set({**(_ABOUT.get() or {}), **fields})
    try:
        yield
    finally:
        _ABOUT.reset(token)


def log_event(
    event: str, level: int = logging.INFO, *, error: BaseException | None = None, **fields: Any
) -> None:
    """Write one line; `event` is a name, such as `committed`, what varies goes into `fields`."""
    LOGGER.log(level, event, exc_info=error, extra={"fields": fields})
