"""The command line: the commands of `jobs.command.registry`, each imported when it is chosen."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from jobs.command.exits import run_app
from jobs.command.options import SiteName, StoreText, one_site, open_store
from jobs.command.protocol import command_of
from jobs.command.registry import EXPORTS, GROUPS, Command


class LateCommand(TyperCommand):
    """A line of the help, which becomes the command itself when that is called."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """The context of the command itself, with its options."""
        app = _app()
        app.command(self.name, help=self.help)(command_of(self.callback.command.load()))  # type: ignore[union-attr]
        return typer.main.get_command(app).make_context(*args, **kwargs)


def _app(help_text: str | None = None) -> typer.Typer:
    return typer.Typer(
        help=help_text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )


def _add(to: typer.Typer, commands: Iterable[Command], group: str | None = None) -> None:
    for command in commands:

        def late() -> None:
            """Stands for a function that is not imported yet."""

        late.command = command  # type: ignore[attr-defined]
        to.command(command.name, cls=LateCommand, help=command.help, rich_help_panel=group)(late)


app = _app("The feature lake for sparse autoencoders.")
exports = _app("Write the store in a format that another tool reads.")
_add(exports, EXPORTS)
for group, commands in GROUPS.items():
    _add(app, commands, group)
app.add_typer(exports, name="export", rich_help_panel="Look")


@app.command(rich_help_panel="Look")
def neighbours(
    store: StoreText,
    feature: Annotated[int, typer.Argument(help="Number of the feature.")],
    site: SiteName = None,
    by: Annotated[str, typer.Option(help="jaccard, npmi, phi, conditional or cosine.")] = "jaccard",
    k: Annotated[int, typer.Option("-k", help="How many, as far as the table goes.", min=1)] = 20,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE", help="Draw them as a graph: .png or .svg.")
    ] = None,
) -> None:
    """The neighbours of one feature, from the stored table, and their graph."""
    from jobs.views.neighbours import neighbours as job

    opened, _ = open_store(store)
    job(opened, one_site(opened, site), feature, by=by, k=k, figure=figure)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; see `exits.run_app` for how it ends."""
    run_app(app, arguments)
