"""Where jobs print: lines for people on standard output.

Whatever is printed here, by whichever job, is harmless to a terminal: characters of the outside that would
steer it are shown as escapes, and no text is taken for an emoji's code.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from functools import cache
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.errors import MarkupError
from rich.markup import escape
from rich.segment import Segment
from rich.text import Text

from schemas.sentences import LONGEST_SENTENCE, NOTE, redacted, visible


class SafeConsole(Console):
    """A console that shows steering characters of texts as escapes; those that Rich itself sends stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Every segment that a renderable is made of, of any depth; strings were cleaned by `render_str`."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else visible(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style)

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as markup, or as it is where it is none, as a cell may be that comes from a table."""
        text = visible(text)
        try:
            return super().render_str(text, **options)
        except MarkupError:
            return Text(text)

    def on_broken_pipe(self) -> None:
        """The reader is gone: `exits` ends without a message."""
        raise BrokenPipeError(errno.EPIPE, "nobody reads standard output")


console = SafeConsole(emoji=False)


def warn(warnings: list[str]) -> None:
    """Print each warning, or note, on a line."""
    for warning in warnings:
        say(escape(warning) if warning.startswith(NOTE) else f"[yellow]warning[/]: {escape(warning)}")


def say(text: str) -> None:
    """Print a line of rich markup as it is: no wrapping at the terminal's width, no colours of its own.

    A line of more than a few thousand characters loses its middle.
    """
    line = console.render_str(redacted(text), markup=True, highlight=False)
    if len(line) > LONGEST_SENTENCE:
        # the beginning says what it is about, the end what to do
        head = LONGEST_SENTENCE * 3 // 4
        line = line[:head] + "…" + line[len(line) - (LONGEST_SENTENCE - 1 - head) :]
    console.print(line, highlight=False, soft_wrap=True)


@cache
def say_cpu(why: str) -> None:
    """Say why device `auto` means the CPU; once, however many sites and steps choose a device."""
    warn([f"{NOTE}device auto: the CPU, because {why}"])
