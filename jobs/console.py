"""Where jobs print: lines for people on standard output."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from pipeline.trained_with import NOTE

console = Console()


def warn(warnings: list[str]) -> None:
    """Print each warning, or note, on a line."""
    for warning in warnings:
        say(escape(warning) if warning.startswith(NOTE) else f"[yellow]warning[/]: {escape(warning)}")


def say(text: str) -> None:
    """Print a line of rich markup as it is: no wrapping at the terminal's width, no colours of its own."""
    console.print(text, highlight=False, soft_wrap=True)
