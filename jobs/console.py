"""Where jobs print: lines for people on standard output."""

from __future__ import annotations

from rich.console import Console

console = Console()


def say(text: str) -> None:
    """Print a line of rich markup as it is: no wrapping at the terminal's width, no colours of its own."""
    console.print(text, highlight=False, soft_wrap=True)
