"""What `mkdocs build` adds to the pages: every option, every key of a run file, and pages from elsewhere.

The README, the store's format, the notes on clusters and the changelog lie where people look for them in the
repository. Here they become pages of the site, and links between them and the other pages are rewritten.
Links to code and to examples become plain text, for the site does not hold those files.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).parents[1]
FROM_ELSEWHERE = {
    "README.md": "index.md",
    "schemas/README.md": "store.md",
    "deploy/README.md": "clusters.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "jobs/demo_data/smollm2-135m-l9/README.md": "demo-sae.md",
}
"""File of the repository -> page of the site."""
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie elsewhere."""
    from mkdocs.structure.files import File

    for source, page in FROM_ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Append what is generated, and point links at pages of the site."""
    sources = {page: source for source, page in FROM_ELSEWHERE.items()}
    name = page.file.src_uri
    added = {"commands.md": commands, "run-file.md": run_file_keys}.get(name)
    return linked(markdown, sources.get(name, f"docs/{name}")) + ("" if added is None else "\n" + added())


def linked(markdown: str, source: str) -> str:
    """The text of a file of the repository with links as the site has them."""

    def link(match: re.Match[str]) -> str:
        text, path, anchor = match[1], match[2], match[3] or ""
        if "://" in path:
            return match[0]
        target = os.path.normpath(Path(source).parent / path)
        target = FROM_ELSEWHERE.get(target, target)
        if target.startswith("docs/") or target in FROM_ELSEWHERE.values():
            return f"[{text}]({target.removeprefix('docs/')}{anchor})"
        return text if text.startswith("`") else f"`{target}`"

    return LINK.sub(link, markdown)


def commands() -> str:
    """Every command with its arguments and options, from the registry."""
    from jobs.command.registry import EXPORTS, GROUPS

    lines = ["## All options", ""]
    for group in GROUPS.values():
        for command in group:
            lines += _command(command, f"latentlake {command.name}")
    for command in EXPORTS:
        lines += _command(command, f"latentlake export {command.name}")
    return "\n".join(lines) + "\n"


def _command(command: Any, name: str) -> Iterator[str]:
    import typer

    from jobs.command.protocol import command_of

    function, app = command_of(command.load()), typer.Typer(add_completion=False)
    app.command()(function)
    parameters = [p for p in typer.main.get_command(app).params if p.name != "help"]
    arguments = [p.metavar or p.name.upper() for p in parameters if p.param_type_name == "argument"]
    options = ["[OPTIONS]"] if len(parameters) > len(arguments) else []
    yield from (f"### {name}", "", command.help, "", "```", " ".join([name, *arguments, *options]), "```", "")
    yield from ("| | | default |", "|---|---|---|")
    kinds = {p.name: p.annotation for p in inspect.signature(function).parameters.values()}
    for parameter in parameters:
        shown = ", ".join([*parameter.opts, *parameter.secondary_opts])
        if parameter.param_type_name == "argument":
            shown = parameter.metavar or parameter.name.upper()
        elif not parameter.is_flag:
            shown += f" {parameter.metavar or _kind(kinds[parameter.name])}"
        yield f"| `{shown}` | {_cell(parameter.help or '')} | {_default(parameter.default)} |"
    yield ""


NAMES = {int: "NUMBER", float: "NUMBER", str: "TEXT", Path: "FILE"}


def _kind(annotation: Any) -> str:
    """What stands for a value of a type."""
    return NAMES.get(annotation) or next(_kind(each) for each in get_args(annotation))


def _default(value: Any) -> str:
    if value is None or value is False or value == "" or callable(value):
        return ""
    return f"`{' '.join(map(str, value)) if isinstance(value, list | tuple) else value}`"


def run_file_keys() -> str:
    """Every key of the run file with its type, default and meaning, from the schema."""
    from schemas.run.file import RunFile

    lines = ["## All keys", ""]
    for name, field in RunFile.model_fields.items():
        (section,) = _sections(field.annotation)
        lines += _section(section, name)
    return "\n".join(lines) + "\n"


def _section(section: Any, place: str) -> Iterator[str]:
    """A table of a section's keys, then those of the sections in it."""
    yield from (f"### {place}", "", section.__doc__.strip().split("\n\n")[0], "")
    yield from ("| key | default | meaning |", "|---|---|---|")
    inner: list[tuple[Any, str]] = []
    for key, field in section.model_fields.items():
        name = field.alias or key
        inner += [(each, f"{place}.{name}") for each in _sections(field.annotation) if each is not section]
        default = "required" if field.is_required() else _value(field.get_default(call_default_factory=True))
        yield f"| `{name}` | {default} | {_cell(field.description or '')} |"
    yield ""
    for each, where in inner:
        yield from _section(each, where)


def _sections(annotation: Any) -> list[Any]:
    """The sections in a type such as `Images | None` or `tuple[Site, ...]`."""
    from schemas.run.section import Section

    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for inner in get_args(annotation) for section in _sections(inner)]


def _value(value: Any) -> str:
    if isinstance(value, tuple | list):
        text = f"[{', '.join(map(str, value))}]"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = "" if value is None else str(value)
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
