"""The command line: the commands of `jobs.command.registry`, each imported when it is chosen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from jobs.command.exits import run_app
from jobs.command.protocol import command_of
from jobs.command.registry import EXPORTS, GROUPS, Command
from schemas import __version__


class LazyCommand(TyperCommand):
    """A line of the help, which becomes the command itself when that is called."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """The context of the command itself, with its options."""
        app = _app()
        app.command(self.name, help=self.help)(command_of(self.callback.command.load()))  # type: ignore[union-attr]
        return typer.main.get_command(app).make_context(*args, **kwargs)


def _app(help_text: str | None = None, *, completes: bool = False) -> typer.Typer:
    return typer.Typer(
        help=help_text, no_args_is_help=True, add_completion=completes, pretty_exceptions_enable=False
    )


def _add(to: typer.Typer, commands: Iterable[Command], group: str | None = None) -> None:
    for command in commands:

        def stub() -> None:
            """Stands for a function that is not imported yet."""

        stub.command = command  # type: ignore[attr-defined]
        to.command(command.name, cls=LazyCommand, help=command.help, rich_help_panel=group)(stub)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"latentlake {__version__}")
        raise typer.Exit


app = _app("The feature lake for sparse autoencoders.", completes=True)


@app.callback()
def latentlake(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """What comes before a command."""


exports = _app("Write the store in the format of another tool.")
_add(exports, EXPORTS)
for group, commands in GROUPS.items():
    _add(app, commands, group)
app.add_typer(exports, name="export", rich_help_panel="Look")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; see `exits.run_app` for how it ends."""
    run_app(app, arguments)
